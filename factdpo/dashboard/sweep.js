'use strict';
// One sweep, or one run: how far it is, run by run, and what ended those that did not finish.
const folder = new URLSearchParams(location.search).get('folder');
const api = (what, more = '') => `/api/${what}?folder=${encodeURIComponent(folder)}${more}`;
const only = new Set();  // states that the reader asked for; all while it is empty
const LISTED = 30;  // runs under one reason
let last = null;

function show(answer) {
  last = answer;
  const single = !answer.is_sweep;
  document.title = `${(answer.steps && answer.counts.running ? `${percent(answer.steps)} ` : '') + answer.name} | factdpo`;
  write($('which'), `${single ? 'Run' : 'Sweep'} ${answer.question || single ? answer.name : ''}`);
  write($('question'), answer.question || (single ? answer.runs[0].label : answer.name));
  write($('problem'), answer.problem);
  $('problem').hidden = !answer.problem;
  if (!$('bar').firstElementChild) $('bar').append(stateBar());
  updateStateBar($('bar').firstElementChild, answer);
  const over = Boolean(answer.counts.FINISHED) && !answer.counts.running && !answer.counts['to do'];
  $('content').classList.toggle('over', over);  // its results stand first
  document.querySelector('nav a[href="#curves"]').hidden = over;
  write($('results-h'), over ? 'Results' : 'Results so far');
  best(answer, over);
  figures(answer);
  table();
  failures(answer);
  showMemory(answer.machine);
  plots(answer);
  results(answer);
}

/** What the sweep asks, answered as far as its runs are; the report below says how sure that is. */
function best(answer, over) {
  $('answer').hidden = !answer.best || !answer.is_sweep;
  if (!answer.best) return;
  const {metric, runs, label, mean} = answer.best;
  write($('answer'), `${over ? 'Best' : 'Best so far'} on ${metric}: ${label}, ${number(mean, 2)}${runs > 1 ? ` (mean of ${runs} runs)` : ''}.`);
}

function figures(answer) {
  const list = [['runs finished', `${answer.counts.FINISHED ?? 0} of ${answer.total}`]];
  for (const state of STATES) if (state !== 'FINISHED' && answer.counts[state]) list.push([state.toLowerCase(), answer.counts[state], DONE_BADLY.has(state)]);
  if (answer.counts.running && answer.steps) list.push([`of ${answer.steps[1]} optimizer steps`, percent(answer.steps)]);
  if (answer.left_seconds !== null) list.push(['left', `~${duration(answer.left_seconds)}`]);
  const make = () => element('div', {}, element('dt'), element('dd'));
  follow($('figures'), list, ([title]) => title, make, (node, [title, value, bad]) => {
    mark(node, 'class', bad ? 'bad' : '');
    write(node.children[0], title);
    write(node.children[1], value);
  });
}

// ----------------------------------------------------------------------------------------------------- table of runs
function table() {
  follow($('states'), STATES.filter(state => last.counts[state]), state => state, state => {
    const button = element('button', {type: 'button', 'data-state': state, 'aria-pressed': 'false'});
    button.onclick = () => {
      only[only.has(state) ? 'delete' : 'add'](state);
      mark(button, 'aria-pressed', only.has(state));
      table();
    };
    return button;
  }, (button, state) => write(button, `${last.counts[state]} ${state.toLowerCase()}`));
  $('states').hidden = last.total === 1;
  for (const state of only) if (!last.counts[state]) only.delete(state);  // none is left in it
  const words = $('filter').value.trim().toLowerCase();
  const shown = last.runs.filter(run => (!only.size || only.has(run.state)) && run.label.toLowerCase().includes(words));
  const columns = runColumns(last.splits, (cell, run) => { write(cell, run.label); mark(cell, 'title', run.id); });
  runTable($('table'), columns, shown, run => run.id, table);
  write($('count'), shown.length < last.total ? `${shown.length} of ${last.total} shown` : '');
}
$('filter').oninput = () => table();

// ---------------------------------------------------------------------------------------------------------- failures
/** Runs that ended alike, together; the end of each one's log, with the traceback, is fetched when it is unfolded. */
function failures(answer) {
  const reasons = new Map();
  for (const run of answer.runs.filter(run => DONE_BADLY.has(run.state))) {
    const why = run.state === 'killed' ? 'started but never finished (process gone); rerun the command to redo it' : run.error;
    const key = `${run.state}\n${why}`;
    if (!reasons.has(key)) reasons.set(key, {key, state: run.state, why, runs: []});
    reasons.get(key).runs.push(run);
  }
  $('failures').hidden = !reasons.size;
  document.querySelector('nav a[href="#failures"]').hidden = !reasons.size;
  const make = () => element('article', {class: 'reason'}, element('h3'), element('p', {class: 'why'}), element('div'), element('p', {class: 'note'}));
  follow($('reasons'), [...reasons.values()], reason => reason.key, make, (node, reason) => {
    const [title, why, runs, more] = node.children;
    write(title, `${reason.state.toLowerCase()}: ${many(reason.runs.length, 'run')}`);
    write(why, reason.why);
    follow(runs, reason.runs.slice(0, LISTED), run => run.id, logOf, () => {});
    write(more, reason.runs.length > LISTED ? `and ${reason.runs.length - LISTED} more; the table above has all` : '');
  });
}
function logOf(run) {
  const text = element('pre', {tabindex: '0', 'aria-label': `End of the log of ${run.label}`});
  const made = element('details', {}, element('summary', {}, run.label), text);
  made.ontoggle = async () => {
    if (!made.open) return;
    try {
      const response = await fetch(api('log', `&run=${encodeURIComponent(run.id)}`));
      write(text, await response.text());
    } catch {
      write(text, 'The dashboard does not answer.');
    }
  };
  return made;
}
document.addEventListener('DOMContentLoaded', () => live(api('sweep'), show));  // when all scripts are there
