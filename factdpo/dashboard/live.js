'use strict';
// What both pages share: asking again and again, and showing the answer without taking anything from under the reader.
// Every text from data becomes a text node, never HTML.
const $ = id => document.getElementById(id);
const ASK_MS = 2000, GIVE_UP_MS = 30000;
const STATES = ['FINISHED', 'STOPPED', 'running', 'FAILED', 'DIVERGED', 'PREEMPTED', 'killed', 'to do'];
const DONE_BADLY = new Set(['FAILED', 'DIVERGED', 'PREEMPTED', 'killed']);

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Touches nothing that is as it should be: a selection or a screen reader's place in it stays. */
function write(node, text) {
  text = String(text ?? '');
  if (node.textContent !== text) node.textContent = text;
}
function mark(node, name, value) {
  if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

/** Keeps one child per item, found again by its key; makes, updates, orders and removes them, and keeps the focus. */
function follow(parent, items, key, make, update) {
  const had = parent.followed ??= new Map(), wanted = new Set(items.map(key)), focus = document.activeElement;
  for (const [name, node] of had) if (!wanted.has(name)) { node.remove(); had.delete(name); }
  let next = parent.firstElementChild;
  for (const item of items) {
    const name = key(item);
    if (!had.has(name)) had.set(name, make(item));
    const node = had.get(name);
    update(node, item);
    if (node === next) next = next.nextElementSibling;
    else parent.insertBefore(node, next);
  }
  if (focus !== document.activeElement && parent.contains(focus)) focus.focus({preventScroll: true});
}

// ---------------------------------------------------------------------------------------------------------- asking
/** Calls `show` with the answer every two seconds while the page is seen; says in the bar above when none comes. */
function live(url, show) {
  let timer = 0, asking = false;
  async function ask() {
    if (asking) return;
    asking = true;
    clearTimeout(timer);
    let answer = null;
    try {
      const response = await fetch(url, {signal: AbortSignal.timeout(GIVE_UP_MS)});
      if (response.ok) answer = await response.json();
      else say('bad', await response.text());
    } catch {
      say('bad', 'The dashboard does not answer: it was stopped, or the machine is busy. This page is out of date.');
    }
    if (answer) { say('good', 'Live'); show(answer); }
    asking = false;
    if (!document.hidden) timer = setTimeout(ask, ASK_MS);
  }
  document.addEventListener('visibilitychange', () => { if (!document.hidden) ask(); });
  return ask();
}
function say(how, text) {
  mark($('live'), 'class', how);
  write($('live'), text);
}

// ----------------------------------------------------------------------------------------------------------- words
const number = (value, digits = 3) => value === null || value === undefined ? '' : typeof value === 'string' ? value : value.toFixed(digits);
const many = (count, what) => `${count} ${what}${count === 1 ? '' : 's'}`;
const percent = ([made, total]) => `${Math.floor(100 * made / Math.max(1, total))} %`;
function duration(seconds) {  // as factdpo status says it
  const minutes = Math.round(seconds / 60);
  if (seconds < 120) return `${Math.round(seconds)} s`;
  return minutes < 120 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}
function ago(changed) {
  const seconds = Math.max(0, Date.now() / 1000 - changed);
  return seconds < 10 ? 'just now' : seconds < 172800 ? `${duration(seconds)} ago` : `on ${new Date(1000 * changed).toLocaleDateString()}`;
}
const counted = counts => STATES.filter(state => counts[state]).map(state => `${counts[state]} ${state.toLowerCase()}`).join(', ');

// ----------------------------------------------------------------------------------------------------- shared parts
/** One bar, as wide as all runs, in which each state has its share. */
function stateBar() {
  return element('div', {class: 'share', role: 'img'});
}
function updateStateBar(bar, {counts, running_done: done}) {  // what is running is filled as far as it is
  mark(bar, 'aria-label', counted(counts));
  follow(bar, STATES.filter(state => counts[state]), state => state, state => element('span', {'data-state': state, title: state}),
    (span, state) => {
      span.style.flexGrow = counts[state];
      span.style.setProperty('--done', state === 'running' ? `${100 * done}%` : '100%');
    });
}

/** A step's place in a run: a bar and the numbers. */
function steps(cell, run) {
  if (!cell.firstElementChild) cell.append(element('progress', {'aria-hidden': 'true'}), element('span'));
  const [bar, text] = cell.children;
  bar.max = run.steps ?? Math.max(1, run.step);
  bar.value = run.step;
  const isKnown = run.step || run.steps;  // an evaluation has no steps
  bar.hidden = !isKnown || run.state === 'to do';
  write(text, bar.hidden ? '' : `${run.step}/${run.steps ?? '?'}`);
}

/** Columns of a table of runs: what each shows, and what it is sorted by. */
function runColumns(splits, name) {
  return [
    {key: 'state', title: 'state', by: run => STATES.indexOf(run.state), show: (cell, run) => { mark(cell, 'data-state', run.state); write(cell, run.state.toLowerCase()); }},
    {key: 'run', title: 'run', head: true, by: run => run.label, show: name},
    {key: 'step', title: 'step', numeric: true, by: run => run.steps ? run.step / run.steps : run.step, show: steps},
    {key: 'loss', title: 'loss', numeric: true, by: run => run.loss, show: (cell, run) => write(cell, number(run.loss))},
    ...splits.map(([split, title]) => ({key: split, title: `accuracy, ${title}`, numeric: true, by: run => run.accuracies[split] ?? null,
      show: (cell, run) => write(cell, number(run.accuracies[split], 2))})),
    {key: 'time', title: 'time', numeric: true, by: run => run.seconds, show: (cell, run) => write(cell, run.seconds === null ? '' : duration(run.seconds))},
    {key: 'left', title: 'left', numeric: true, by: run => run.left_seconds,
      show: (cell, run) => write(cell, run.left_seconds === null ? '' : `~${duration(run.left_seconds)}`)},
  ];
}

const sorted = {key: null, up: true};  // what the reader asked for stays
/** Fills the table; a click on a heading sorts it, and sorts it again whenever numbers change. */
function runTable(table, columns, rows, key, again) {
  const row = table.tHead.rows[0] ?? table.tHead.insertRow();
  const button = column => {
    const made = element('button', {type: 'button'}, column.title);
    made.onclick = () => { sorted.up = sorted.key !== column.key || !sorted.up; sorted.key = column.key; again(); };
    return element('th', {scope: 'col', ...(column.numeric ? {class: 'number'} : {})}, made);
  };
  follow(row, columns, column => column.key, button, (head, column) =>
    mark(head, 'aria-sort', sorted.key !== column.key ? 'none' : sorted.up ? 'ascending' : 'descending'));
  const by = columns.find(column => column.key === sorted.key)?.by;
  if (by) rows = [...rows].sort((a, b) => order(by(a), by(b)) * (sorted.up || missing(by(a)) || missing(by(b)) ? 1 : -1));
  const cell = column => element(column.head ? 'th' : 'td', {...(column.head ? {scope: 'row'} : {}), ...(column.numeric ? {class: 'number'} : {})});
  follow(table.tBodies[0], rows, key, () => element('tr'), (line, run) => {
    mark(line, 'class', DONE_BADLY.has(run.state) ? 'failed' : '');
    follow(line, columns, column => column.key, cell, (made, column) => column.show(made, run));
  });
}
const missing = value => value === null || value === undefined;
function order(a, b) {  // what is missing stands last; a loss that is no number (nan, inf) just before it
  if (missing(a) || missing(b)) return missing(a) - missing(b);
  return typeof a === 'number' && typeof b === 'number' ? a - b : String(a).localeCompare(String(b), undefined, {numeric: true});
}

/** Meters of memory: the machine's, each GPU's, each process's. */
function showMemory(machine) {
  const gib = value => value === null ? '?' : `${value.toFixed(1)} GiB`;
  const rows = [
    {key: 'all', title: 'memory in use, all programs', used: machine.used_gib, total: machine.total_gib},
    ...machine.gpus.map((gpu, at) => ({key: `gpu${at}`, title: `GPU ${at}, ${gpu.name}${gpu.busy === null ? '' : `, ${Math.round(100 * gpu.busy)} % busy`}`,
      used: gpu.used_gib, total: gpu.total_gib})),
    ...machine.processes.map(one => ({key: `p${one.pid}`, title: `process ${one.pid}, which does ${many(one.runs, 'run')}`, used: one.rss_gib, total: machine.total_gib, own: true})),
  ];
  const make = () => element('div', {}, element('dt'), element('dd', {}, element('meter', {min: 0}), element('span')));
  follow($('memory'), rows, row => row.key, make, (node, row) => {
    const [title, data] = node.children, [meter, text] = data.children;
    write(title, row.title);
    meter.max = row.total ?? 1;
    meter.value = row.used ?? 0;
    meter.hidden = row.used === null || row.total === null;
    write(text, row.own ? gib(row.used) : `${gib(row.used)} of ${gib(row.total)}`);
  });
}

// ----------------------------------------------------------------------------------------------------------- theme
const darkWanted = matchMedia('(prefers-color-scheme: dark)');
const isDark = () => (document.documentElement.dataset.theme ?? (darkWanted.matches ? 'dark' : 'light')) === 'dark';
function setTheme(name) {
  if (name) document.documentElement.dataset.theme = name;
  document.dispatchEvent(new Event('theme'));
}
setTheme(localStorage.getItem('theme'));  // before anything is drawn
document.addEventListener('DOMContentLoaded', () => {
  const label = () => write($('theme'), isDark() ? 'Light' : 'Dark');
  $('theme').onclick = () => {
    const name = isDark() ? 'light' : 'dark';
    localStorage.setItem('theme', name);
    setTheme(name);
  };
  document.addEventListener('theme', label);
  darkWanted.addEventListener('change', () => setTheme());
  label();
});
