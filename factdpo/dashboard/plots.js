'use strict';
// Curves of the runs that are being done, or of those that ended last; drawn anew only when they have grown.
// Okabe and Ito's colours, less their yellow, and black turned to what the theme writes in.
const OKABE = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', null];
const BRIGHTER = {'#0072b2': '#4ba3dd', '#d55e00': '#ec7a33', '#009e73': '#2dbb90'};  // on a dark ground
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const escaped = text => String(text).replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;');  // plotly reads labels as HTML
const slots = new Map();  // run -> its colour, kept for as long as it is drawn
let before = '';

function plots(answer) {
  const curves = answer.curves;
  $('curves').hidden = !curves.length;
  if (!curves.length) return;
  for (const id of slots.keys()) if (!curves.some(curve => curve.id === id)) slots.delete(id);
  for (const curve of curves) {
    if (slots.has(curve.id)) continue;
    const taken = new Set(slots.values());
    let slot = 0;
    while (taken.has(slot)) slot++;
    slots.set(curve.id, slot);
  }
  const opened = answer.runs.filter(run => run.state !== 'to do').length;
  write($('curves-note'), curves.length < opened
    ? `Of ${curves.length} of ${opened} runs: those that are being done first, then those that ended last. All stand in the results below once they have finished.`
    : 'Accuracy at each evaluation; a point of the loss is the mean over the steps since the one before.');
  const splits = answer.splits.filter(([split]) => curves.some(curve => split in curve.accuracy));
  if ($('split').length !== splits.length) {
    const chosen = $('split').value || answer.asked.find(asked => splits.some(([split]) => split === asked));
    $('split').replaceChildren(...splits.map(([split, title]) => new Option(title, split, false, split === chosen)));
  }
  $('split-control').hidden = !splits.length;
  const now = JSON.stringify([curves, $('split').value, isDark()]);
  if (now === before) return;
  before = now;
  follow($('key'), curves, curve => curve.id, curve => element('span', {}, swatch(), curve.label), (node, curve) => {
    const line = node.querySelector('line'), slot = slots.get(curve.id);
    line.setAttribute('stroke', colour(slot));
    line.setAttribute('stroke-dasharray', slot < OKABE.length ? 'none' : '6 3');
  });
  draw('c-loss', curves.map(curve => [curve, ...curve.loss]), 'loss', undefined);
  draw('c-accuracy', curves.filter(curve => $('split').value in curve.accuracy)
    .map(curve => [curve, curve.steps, curve.accuracy[$('split').value]]), 'accuracy', [-0.02, 1.03]);
}
function colour(slot) {
  const chosen = OKABE[slot % OKABE.length] ?? css('--fg');
  return isDark() ? BRIGHTER[chosen] ?? chosen : chosen;
}
function swatch() {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  for (const [name, value] of Object.entries({width: 26, height: 12, 'aria-hidden': true})) svg.setAttribute(name, value);
  const line = document.createElementNS('http://www.w3.org/2000/svg', 'line');
  for (const [name, value] of Object.entries({x1: 0, x2: 26, y1: 6, y2: 6, 'stroke-width': 3})) line.setAttribute(name, value);
  svg.append(line);
  return svg;
}
function draw(id, lines, title, range) {
  const axis = (text, extra = {}) => ({title: {text, standoff: 8, font: {size: 12}}, gridcolor: css('--line'), linecolor: css('--line'),
    zeroline: false, automargin: true, fixedrange: matchMedia('(pointer: coarse)').matches, ...extra});
  const traces = lines.map(([curve, x, y]) => ({x, y, name: escaped(curve.label), mode: x.length > 1 ? 'lines' : 'lines+markers', hovertemplate: '%{y:.3g} at step %{x}<br>%{fullData.name}<extra></extra>',
    line: {color: colour(slots.get(curve.id)), width: 1.8, dash: slots.get(curve.id) < OKABE.length ? 'solid' : 'dash'}}));
  Plotly.react(id, traces, {
    uirevision: 'kept', showlegend: false, hovermode: 'closest', margin: {l: 48, r: 14, t: 12, b: 44}, paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)',
    font: {family: getComputedStyle(document.body).fontFamily, size: 12, color: css('--fg')},
    hoverlabel: {bgcolor: css('--bg'), bordercolor: css('--line'), font: {color: css('--fg')}, align: 'left'},
    modebar: {color: css('--muted'), activecolor: css('--fg'), bgcolor: 'rgba(0,0,0,0)'},
    xaxis: axis('optimizer step', {rangemode: 'tozero'}), yaxis: axis(title, range ? {range} : {}),
  }, {responsive: true, displaylogo: false, modeBarButtons: [['toImage', 'zoom2d', 'pan2d', 'resetScale2d']]});
}
$('split').onchange = () => plots(last);
document.addEventListener('theme', () => { if (last) plots(last); });
