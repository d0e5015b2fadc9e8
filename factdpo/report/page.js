'use strict';
// What all parts share: the data, the theme, which split and which runs the reader looks at.
const D = JSON.parse(document.getElementById('data').textContent);
const $ = id => document.getElementById(id);
const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
const root = document.documentElement;
const DRAWN = 14;  // selected runs that are drawn: seven colours, solid and dashed
// Okabe and Ito's colours, less their yellow, and black turned to what the theme writes in.
const OKABE = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', null];
const BRIGHTER = {'#0072b2': '#4ba3dd', '#d55e00': '#ec7a33', '#009e73': '#2dbb90', '#00224e': '#3c6ea8', '#31446b': '#6a86b0'};  // on a dark ground
const bright = hex => isDark() ? BRIGHTER[hex] ?? hex : hex;
const colour = slot => OKABE[slot % 7] ? bright(OKABE[slot % 7]) : css('--fg');
const css = name => getComputedStyle(root).getPropertyValue(name).trim();
const escaped = text => String(text).replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;');  // for plotly
const short = (text, most = 40) => text.length > most ? text.slice(0, most - 1) + '…' : text;

const state = {
  split: (D.splits.find(([name]) => D.asked.endsWith(`/${name}`)) ?? D.splits.find(([name]) => name === 'test') ?? D.splits[0] ?? [''])[0],
  metric: [...Object.keys(D.across), ...Object.keys(D.charted)].find(name => D.asked === name || D.asked.startsWith(`${name}/`)) ?? 'accuracy',
  slots: new Map(D.chosen.map((run, slot) => [run, slot])),  // selected run -> its colour, kept while it is selected
};
const title = split => (D.splits.find(([name]) => name === split) ?? [split, split])[1];
const chosen = () => [...state.slots.keys()].sort((a, b) => a - b);
const drawn = () => chosen().slice(0, DRAWN);

const drawings = [];  // {when: what a change must touch, draw}
const onChange = (when, draw) => drawings.push({when, draw});
const changed = what => drawings.filter(one => !what || one.when.includes(what)).forEach(one => one.draw());

function select(run, on) {
  if (!on) state.slots.delete(run);
  else if (!state.slots.has(run)) {
    const taken = new Set(state.slots.values());
    let slot = 0;
    while (taken.has(slot)) slot++;
    state.slots.set(run, slot);
  }
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);  // strings become text, never HTML
  return made;
}

function swatch(slot) {
  const line = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  const stroke = {x1: 0, x2: 26, y1: 6, y2: 6, stroke: colour(slot), 'stroke-width': 3};
  if (slot >= 7) stroke['stroke-dasharray'] = '6 3';
  const drawn = document.createElementNS('http://www.w3.org/2000/svg', 'line');
  for (const [name, value] of Object.entries(stroke)) drawn.setAttribute(name, value);
  for (const [name, value] of Object.entries({width: 26, height: 12, 'aria-hidden': true})) line.setAttribute(name, value);
  line.append(drawn);
  return line;
}

// ------------------------------------------------------------------------------------------------------ the theme
const darkWanted = matchMedia('(prefers-color-scheme: dark)');
const isDark = () => (root.dataset.theme ?? (darkWanted.matches ? 'dark' : 'light')) === 'dark';
function theme(name) {
  if (name) root.dataset.theme = name;
  else delete root.dataset.theme;
  $('theme').textContent = isDark() ? 'Light' : 'Dark';
  changed();
}
$('theme').onclick = () => theme(isDark() ? 'light' : 'dark');
darkWanted.addEventListener('change', () => theme(root.dataset.theme));

// --------------------------------------------------------------------------------------- one choice of split for all
for (const select of all('select.split')) {
  select.value = state.split;
  select.onchange = () => { state.split = select.value; changed('split'); };
}
onChange(['split'], () => {
  for (const select of all('select.split')) select.value = state.split;
  for (const part of all('.only')) part.hidden = part.dataset.split !== state.split;
  for (const name of all('.split-name')) name.textContent = title(state.split);
});

// --------------------------------------------------------------------------------------------------- copy buttons
document.addEventListener('click', async event => {
  const button = event.target.closest('.copy');
  if (!button) return;
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
  } catch {  // a page opened from a file may be denied the clipboard
    const area = element('textarea');
    area.value = button.dataset.copy;
    document.body.append(area);
    area.select();
    document.execCommand('copy');
    area.remove();
  }
  button.textContent = 'Copied';
  setTimeout(() => { button.textContent = 'Copy'; }, 1500);
});

// ------------------------------------------------------------------------- what two runs' configurations differ in
if ($('diff')) {
  const selects = [$('diff-a'), $('diff-b')];
  D.runs.forEach((run, at) => selects.forEach(select => select.add(new Option(`${run.label} (${run.id})`, at))));
  const firsts = [...drawn(), 0, 1];
  selects[0].value = firsts[0];
  selects[1].value = firsts.find(run => run !== firsts[0]);
  const show = () => {
    const [a, b] = selects.map(select => Number(select.value)), body = $('diff').tBodies[0];
    [$('diff-one').textContent, $('diff-other').textContent] = [a, b].map(run => D.runs[run].label);
    const keys = Object.keys(D.differing).filter(key => D.differing[key][a] !== D.differing[key][b]);
    body.replaceChildren(...keys.map(key => element('tr', {}, element('th', {scope: 'row'}, key),
      ...[a, b].map(run => element('td', {}, D.differing[key][run] ?? 'not known')))));
    if (!keys.length) body.append(element('tr', {}, element('td', {colspan: 3}, 'They were asked for in the same words.')));
  };
  selects.forEach(select => { select.onchange = show; });
  show();
}
