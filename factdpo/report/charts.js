// The charts, drawn by plotly from D. Texts from data go through escaped(): plotly reads labels as HTML.
const CONFIG = {responsive: true, displaylogo: false, modeBarButtons: [['toImage', 'zoom2d', 'pan2d', 'resetScale2d']]};
const SPLIT_COLOURS = {train: '#0072b2', train_reversed: '#56b4e9', test: '#d55e00', test_reversed: '#e69f00'};
const SYMBOLS = ['circle', 'circle-open', 'square', 'square-open', 'diamond'];
const isShare = metric => D.shares.includes(metric);
const splitColour = split => bright(SPLIT_COLOURS[split] ?? '#cc79a7');
const splitSymbol = split => SYMBOLS[D.splits.findIndex(([name]) => name === split)] ?? 'x';
const finite = values => values.filter(value => value !== null && value !== undefined);
const digits = value => value === null || value === undefined ? 'none' : String(+value.toPrecision(3));
// A number of a split, or one across splits, which has none; `base/` may stand before it.
const isAcross = name => name.replace('base/', '') in D.across;
const full = (name, split) => isAcross(name) ? name : `${name}/${split}`;
const see = (name, split) => D.means[full(name, split)] ?? [];
const ofRuns = (name, split) => D.metrics[full(name, split)] ?? [];
const splitsOf = metric => isAcross(metric) ? [['', D.across[metric]]] : D.splits;
const charted = metric => D.charted[metric] ?? D.across[metric];
/** The ends of an axis that fits its values, with a little room; a share's never lies far beyond 0 and 1. */
function fitted(values, share) {
  const known = finite(values), low = Math.min(...known), high = Math.max(...known), room = .06 * (high - low) || .05;
  if (!known.length) return undefined;
  return share ? [Math.max(-0.02, low - room), Math.min(1.03, high + room)] : [low - room, high + room];
}
const FEW = D.few;  // of many settings the best and the worst

/** Names beside the rows of a chart: on a narrow screen each in lines of its words, since what tells them apart may stand last. */
function rowNames(names) {
  if (innerWidth >= 700) return names.map(name => [escaped(short(name, 44))]);
  return names.map(name => name.split(' ').reduce((lines, word) => {
    const last = lines.at(-1);
    if (last !== undefined && last.length + word.length < 22) lines[lines.length - 1] = `${last} ${word}`;
    else lines.push(short(word, 22));
    return lines;
  }, []).map(escaped));
}
const linesOf = names => Math.max(1, ...names.map(lines => lines.length));

function axis(text, extra = {}) {
  return {title: {text, standoff: 8, font: {size: 12}}, gridcolor: css('--line'), linecolor: css('--line'), zeroline: false,
    automargin: true, fixedrange: matchMedia('(pointer: coarse)').matches, ...extra};
}
function plot(id, traces, layout = {}) {
  const chart = $(id), first = !chart.on;  // plotly makes the chart of an element once
  const {xaxis, yaxis, ...rest} = layout;
  Plotly.react(id, traces, {
    margin: {l: 48, r: 14, t: 12, b: 44}, paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)',
    font: {family: getComputedStyle(document.body).fontFamily, size: 12, color: css('--fg')}, hovermode: 'closest',
    hoverlabel: {bgcolor: css('--bg'), bordercolor: css('--line'), font: {color: css('--fg')}, align: 'left'},
    legend: {orientation: 'h', x: 0, y: 1.02, yanchor: 'bottom', font: {size: 12}},
    modebar: {color: css('--muted'), activecolor: css('--fg'), bgcolor: 'rgba(0,0,0,0)'},
    ...rest, xaxis: axis('', xaxis), yaxis: axis('', yaxis),
  }, CONFIG);
  if (first) chart.on('plotly_click', event => follow([event.points[0].customdata].flat().filter(Number.isInteger)));
}
/** From a point to its runs: they are selected, and the first is shown in the table. */
function follow(runs) {
  const rows = runs.map(run => document.querySelector(`#table tr[data-run="${run}"]`)).filter(Boolean);
  if (!rows.length) return;
  if (rows[0].hidden) for (const input of all('#filter, .filters input')) { input.value = ''; input.dispatchEvent(new Event('input')); }
  runs.filter(run => D.runs[run].curves || 'graph' in D.runs[run]).forEach(run => select(run, true));
  changed('runs');
  for (const row of all('#table tr.followed')) row.classList.remove('followed');
  rows.forEach(row => row.classList.add('followed'));
  rows[0].scrollIntoView({block: 'center'});
  rows[0].querySelector('input').focus({preventScroll: true});
}
const runsOf = setting => D.runs.flatMap((run, at) => run.setting === setting ? [at] : []);
const named = (text, extra = {}) => ({...extra, title: {text, standoff: 8, font: {size: 12}}});
const hoverOf = (label, score, name) => `${escaped(label)}<br>${escaped(name)}: ${digits(score[1])}`
  + (score[2] === null ? '' : ` [${digits(score[2])}, ${digits(score[3])}]`) + `<br>${score[0]} run${score[0] === 1 ? '' : 's'}`;

// ------------------------------------------------------------------------------------------- what the settings do
const box = $('axes-charts');
function figure(id, caption, height) {  // % in a caption stands for the facts that are chosen
  const words = caption.split('%'), parts = words.flatMap((text, at) => at ? [element('span', {class: 'split-name'}), text] : [text]);
  const made = element('figure', {}, element('figcaption', {}, ...parts), element('div', {class: 'chart', id, style: `height:${height}px`}));
  box.append(made);
}
function metricsHere() {
  return [...Object.keys(D.charted), ...Object.keys(D.across)].filter(metric => splitsOf(metric).some(([split]) => finite(see(metric, split)).length));
}

/** A line per split over a numeric axis, with the band of its intervals and a dot per run. */
function lines(id) {
  const [at] = D.axes, metric = state.metric, traces = [], few = D.runs.length <= 300;
  for (const [split, name] of splitsOf(metric)) {
    const scores = see(metric, split), color = splitColour(split);
    const points = D.settings.map((setting, i) => [setting.values[0], scores[i], setting.label, runsOf(i)]).filter(([, score]) => score)
      .sort((a, b) => a[0] - b[0]);
    const banded = points.filter(([, score]) => score[2] !== null);
    if (!split || split === state.split) traces.push({x: [...banded.map(p => p[0]), ...banded.map(p => p[0]).reverse()],
      y: [...banded.map(p => p[1][3]), ...banded.map(p => p[1][2]).reverse()],
      fill: 'toself', fillcolor: color, opacity: .13, line: {width: 0}, mode: 'lines', hoverinfo: 'skip', showlegend: false, legendgroup: split});
    traces.push({x: points.map(p => p[0]), y: points.map(p => p[1][1]), mode: 'lines+markers', name: escaped(name), legendgroup: split,
      line: {color, width: 2, dash: split.endsWith('reversed') ? 'dash' : 'solid'}, marker: {size: 8, symbol: splitSymbol(split)},
      text: points.map(p => hoverOf(p[2], p[1], name)), hoverinfo: 'text', customdata: points.map(p => p[3])});
    if (few) traces.push({x: D.runs.map(run => run.setting === null ? null : D.settings[run.setting].values[0]), y: ofRuns(metric, split), customdata: D.runs.map((_, at) => at),
      mode: 'markers', marker: {color, size: 4, opacity: .55}, text: D.runs.map(run => escaped(run.label)), hoverinfo: 'text+y', showlegend: false, legendgroup: split});
  }
  traces.push(...baseLine(metric));
  const ends = traces.flatMap(trace => trace.y);
  plot(id, traces, {xaxis: named(escaped(at.key), {type: at.log ? 'log' : 'linear', tickvals: at.values.length < 13 ? at.values : undefined,
    ticktext: at.values.length < 13 ? at.values.map(String) : undefined}), yaxis: named(charted(metric), {range: fitted(ends, isShare(metric))})});
}
function baseLine(metric) {
  const names = splitsOf(metric).map(([name]) => name), split = names.includes('test') ? 'test' : names[0], scores = see(`base/${metric}`, split);
  const points = D.settings.map((setting, i) => [setting.values[0], scores[i]]).filter(([, score]) => score).sort((a, b) => a[0] - b[0]);
  return points.length ? [{x: points.map(p => p[0]), y: points.map(p => p[1][1]), mode: 'lines', line: {color: css('--base'), width: 1.5, dash: 'dot'},
    name: isAcross(metric) ? 'base model' : `base model, ${escaped(title(split))}`, hoverinfo: 'y'}] : [];
}

/** A row per setting, or per split where nothing but seeds differ; a dot with its interval for each split. */
function dots(id) {
  const metric = state.metric, traces = [], byRow = D.axes.length > 0, splits = splitsOf(metric), share = isShare(metric);
  const rows = byRow ? FEW.map(i => D.settings[i].label) : splits.map(([, name]) => name);
  const gap = .62 / Math.max(1, splits.length - 1), place = new Map(FEW.map((i, at) => [i, at]));
  splits.forEach(([split, name], s) => {
    const scores = see(metric, split), base = see(`base/${metric}`, split), color = splitColour(split);
    const off = byRow && splits.length > 1 ? s * gap - .31 : 0, y = at => byRow ? at + off : s;
    const points = (byRow ? FEW : [0]).map((i, at) => [y(at), scores[i], base[i], D.settings[i].label, runsOf(i)]).filter(p => p[1]);
    const half = (p, end) => p[1][end] === null ? 0 : Math.abs(p[1][end] - p[1][1]);
    traces.push({x: points.map(p => p[1][1]), y: points.map(p => p[0]), mode: 'markers', name: escaped(name), showlegend: byRow,
      marker: {color, size: 9, symbol: splitSymbol(split), line: {width: 1.6, color}}, customdata: points.map(p => p[4]),
      error_x: {type: 'data', symmetric: false, array: points.map(p => half(p, 3)), arrayminus: points.map(p => half(p, 2)), color, thickness: 1.8, width: 3},
      text: points.map(p => hoverOf(p[3], p[1], name)), hoverinfo: 'text'});
    const before = points.filter(p => p[2]);
    traces.push({x: before.map(p => p[2][1]), y: before.map(p => p[0]), mode: 'markers', name: 'base model', legendgroup: 'base', showlegend: s === 0 && before.length > 0,
      marker: {symbol: 'line-ns', size: 10, line: {width: 2, color: css('--base')}}, hoverinfo: 'x'});
    if (D.runs.length > 300) return;
    const runs = D.runs.map((run, at) => [ofRuns(metric, split)[at], byRow ? place.get(run.setting) : 0, run.label, at])
      .filter(([value, row]) => value !== null && value !== undefined && row !== undefined);
    if (runs.length > points.length) traces.push({x: runs.map(r => r[0]), y: runs.map(r => y(r[1]) + (byRow ? 0 : .18)), mode: 'markers', customdata: runs.map(r => r[3]),
      marker: {color, size: 4, opacity: .5}, text: runs.map(r => escaped(r[2])), hoverinfo: 'text+x', showlegend: false});
  });
  if (!byRow && metric === 'accuracy') traces.push(...rules());
  const ends = traces.flatMap(trace => trace.x.flatMap((x, at) => [x - (trace.error_x?.arrayminus[at] ?? 0), x + (trace.error_x?.array[at] ?? 0)]));
  const names = rowNames(rows);
  $(id).style.height = `${110 + rows.length * Math.max(byRow ? 18 + 13 * splits.length : 46, 16 * linesOf(names) + 6)}px`;
  plot(id, traces, {margin: {l: 20, r: 14, t: 12, b: 44}, xaxis: named(charted(metric), {range: fitted(ends, share)}),
    yaxis: {tickvals: rows.map((_, at) => at), ticktext: names.map(lines => lines.join('<br>')), range: [rows.length - .4, -.6],
      showgrid: false, title: {text: ''}}});
}
const RULES = {majority: 'triangle-up', shorter: 'triangle-down', answer_counts: 'hexagon-open', bag_of_names: 'x-thin', first_name: 'triangle-left', second_name: 'triangle-right', additive: 'cross-thin', implied: 'star-triangle-up'};
function rules() {
  return Object.entries(RULES).map(([rule, symbol]) => {
    const points = D.splits.map(([split], s) => [see(`baseline/${rule}`, split)[0]?.[1], s]).filter(([value]) => value !== undefined);
    return {x: points.map(p => p[0]), y: points.map(p => p[1] - .18), mode: 'markers', name: D.baselines[rule],
      marker: {symbol, size: 8, color: css('--muted'), line: {width: 1.5, color: css('--muted')}}, hoverinfo: 'x+name', visible: points.length ? true : 'legendonly'};
  });
}

/** Two axes: a cell per combination, for the chosen split. */
function heat(id) {
  const [across, down] = wide() ? D.axes : [...D.axes].reverse(), [i, j] = [D.axes.indexOf(across), D.axes.indexOf(down)];
  const scores = see(state.metric, state.split), known = finite(scores).map(found => found[1]), [low, high] = [Math.min(...known), Math.max(...known)];
  const score = (x, y) => scores[D.settings.findIndex(setting => setting.values[i] === x && setting.values[j] === y)] ?? null;
  const table = pick => down.values.map(y => across.values.map(x => pick(score(x, y), x, y)));
  $(id).style.height = `${130 + 44 * down.values.length}px`;
  plot(id, [{type: 'heatmap', x: across.values.map(String), y: down.values.map(String), z: table(found => found && found[1]), colorscale: 'Cividis',
    zmin: low, zmax: high > low ? high : low + 1, xgap: 2, ygap: 2,
    text: table((found, x, y) => found ? hoverOf(`${across.short}=${x} ${down.short}=${y}`, found, title(state.split)) : 'none'), hoverinfo: 'text',
    customdata: table((_, x, y) => runsOf(D.settings.findIndex(setting => setting.values[i] === x && setting.values[j] === y))), colorbar: {thickness: 10, outlinewidth: 0, len: 1}}],
  {annotations: across.values.length * down.values.length > 400 ? [] : down.values.flatMap((y, row) => across.values.map((x, column) => numberIn(score(x, y), column, row, (low + high) / 2))),
    xaxis: named(escaped(across.key), {type: 'category', showgrid: false}), yaxis: named(escaped(down.key), {type: 'category', showgrid: false})});
}
function numberIn(found, x, y, middle) {  // black on the bright half of the colours, white on the dark half
  return {x, y, text: found ? found[1].toFixed(2) : '', showarrow: false, font: {size: 13, color: found && found[1] > middle ? '#000' : '#fff'}};
}
const wide = () => D.axes[0].values.length >= D.axes[1].values.length;

/** Two axes of which one is numeric: a line over it for each value of the other, for the chosen split. */
function manyLines(id) {
  const numeric = D.axes.filter(one => one.numeric).sort((a, b) => b.values.length - a.values.length)[0];
  const other = D.axes.find(one => one !== numeric), i = D.axes.indexOf(numeric), j = 1 - i, scores = see(state.metric, state.split), traces = [];
  other.values.forEach((value, slot) => {
    const points = D.settings.map((setting, at) => [setting.values[i], scores[at], setting]).filter(([, found, setting]) => found && setting.values[j] === value)
      .sort((a, b) => a[0] - b[0]), color = colour(slot), banded = points.filter(([, score]) => score[2] !== null);
    traces.push({x: [...banded.map(p => p[0]), ...banded.map(p => p[0]).reverse()], y: [...banded.map(p => p[1][3]), ...banded.map(p => p[1][2]).reverse()],
      fill: 'toself', fillcolor: color, opacity: .12, line: {width: 0}, mode: 'lines', hoverinfo: 'skip', showlegend: false, legendgroup: slot});
    traces.push({x: points.map(p => p[0]), y: points.map(p => p[1][1]), mode: 'lines+markers', name: `${escaped(other.short)}=${escaped(String(value))}`, legendgroup: slot,
      line: {color, width: 2, dash: slot < 7 ? 'solid' : 'dash'}, marker: {size: 8, symbol: SYMBOLS[slot % 5]},
      text: points.map(p => hoverOf(p[2].label, p[1], title(state.split))), hoverinfo: 'text', customdata: points.map(p => runsOf(D.settings.indexOf(p[2])))});
  });
  plot(id, traces, {xaxis: named(escaped(numeric.key), {type: numeric.log ? 'log' : 'linear', tickvals: numeric.values.length < 13 ? numeric.values : undefined,
    ticktext: numeric.values.length < 13 ? numeric.values.map(String) : undefined}), yaxis: named(charted(state.metric), {range: fitted(traces.flatMap(trace => trace.y), isShare(state.metric))})});
}

/** Three axes and more: a line per setting through all of them, in the colour of its score. */
const CIVIDIS = ['#00224e', '#31446b', '#666970', '#958f78', '#cab969', '#fee838'];
function parallel(id) {
  const scores = see(state.metric, state.split), known = finite(scores).map(score => score[1]);
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const part = (value, from, to) => to > from ? (value - from) / (to - from) : .5;
  const place = (one, value) => {
    if (!one.numeric) return part(one.values.indexOf(value), 0, one.values.length - 1);
    const scale = one.log ? Math.log : v => v;
    return part(scale(value), scale(one.values[0]), scale(one.values.at(-1)));
  };
  const bins = CIVIDIS.map(() => ({x: [], y: [], text: [], customdata: []}));
  D.settings.forEach((setting, at) => {
    if (!scores[at]) return;
    const score = part(scores[at][1], low, high), bin = bins[Math.min(5, Math.max(0, Math.floor(score * 6)))];
    bin.x.push(...D.axes.map((_, i) => i), D.axes.length, null);
    bin.y.push(...D.axes.map((one, i) => place(one, setting.values[i])), score, null);
    bin.text.push(...Array(D.axes.length + 1).fill(hoverOf(setting.label, scores[at], title(state.split))), '');
    bin.customdata.push(...Array(D.axes.length + 1).fill(runsOf(at)), null);
  });
  const traces = bins.map((bin, b) => ({...bin, mode: 'lines+markers', line: {color: bright(CIVIDIS[b]), width: 1.6}, marker: {size: 4}, opacity: known.length > 60 ? .6 : .9,
    hoverinfo: 'text', showlegend: bin.x.length > 0, name: `${digits(low + b / 6 * (high - low))} to ${digits(low + (b + 1) / 6 * (high - low))}`}));
  const ticks = D.axes.flatMap((one, i) => {
    const values = one.values.length <= 9 ? one.values : [one.values[0], one.values[Math.floor(one.values.length / 2)], one.values.at(-1)];
    return values.map(value => ({x: i, y: place(one, value), text: escaped(short(String(value), 14)), showarrow: false, xanchor: 'left', xshift: 5, font: {size: 11},
      bgcolor: css('--bg'), opacity: .9}));
  });
  $(id).style.height = '420px';
  plot(id, traces, {annotations: ticks, shapes: [...D.axes, 0].map((_, i) => ({type: 'line', x0: i, x1: i, y0: 0, y1: 1, line: {color: css('--muted'), width: 1}})),
    xaxis: {tickvals: [...D.axes.map((_, i) => i), D.axes.length], ticktext: [...D.axes.map(one => escaped(one.short)), charted(state.metric)], showgrid: false,
      range: [-.1, D.axes.length + .1], title: {text: ''}}, yaxis: {visible: false, range: [-.04, 1.04]}});
}

/** A search: each trial by its number with the runs' mean, and the best so far. */
function searched(id) {
  const metric = state.metric, scores = see(metric, state.split), base = finite(see(`base/${metric}`, state.split))[0];
  const points = D.trials.map((setting, at) => [at + 1, scores[setting], setting]).filter(p => p[1]);
  const better = metric === D.asked.replace(/\/[^/]*$/, '') || metric === D.asked ? (D.lower ? Math.min : Math.max) : isLower(metric) ? Math.min : Math.max;
  let best = null;
  const bests = points.map(([, [, value]]) => { best = best === null ? value : better(best, value); return best; });
  plot(id, [
    {x: points.map(p => p[0]), y: points.map(p => p[1][1]), mode: 'markers', name: 'trial', marker: {size: 8, color: css('--dot')}, customdata: points.map(p => runsOf(p[2])),
      text: points.map(p => hoverOf(D.settings[p[2]].label, p[1], isAcross(metric) ? charted(metric) : title(state.split))), hoverinfo: 'text'},
    {x: points.map(p => p[0]), y: bests, mode: 'lines', name: 'best so far', line: {shape: 'hv', width: 2, color: css('--bad')}, hoverinfo: 'y'},
    ...(base ? [{x: [1, points.length], y: [base[1], base[1]], mode: 'lines', name: 'base model', line: {color: css('--base'), width: 1.5, dash: 'dot'}, hoverinfo: 'y'}] : []),
  ], {xaxis: named('trial'), yaxis: named(charted(metric))});
}
const isLower = metric => metric === D.retention || metric === 'p_other' || metric === 'rejected_logp_nats';
function importance() {
  const keys = Object.keys(D.importance).reverse(), names = rowNames(keys);
  $('a-importance').style.height = `${70 + 28 * keys.length}px`;
  plot('a-importance', [{type: 'bar', orientation: 'h', x: keys.map(key => D.importance[key]), y: keys.map((_, at) => at), marker: {color: css('--dot')}, hoverinfo: 'x'}],
    {margin: {l: 20, r: 14, t: 6, b: 44}, bargap: .35, xaxis: named('share', {rangemode: 'tozero'}),
      yaxis: {tickvals: keys.map((_, at) => at), ticktext: names.map(lines => lines.join('<br>')), showgrid: false, title: {text: ''}}});
}

/** Settings by what they learn and what they forget; the line joins those that no other beats in both, which are named
 *  first: a name that would lie on another's is left out. */
function frontier(id) {
  const lost = see(D.retention), learned = see('accuracy', state.split), base = [see(`base/${D.retention}`), see('base/accuracy', state.split)].map(found => finite(found)[0]?.[1]);
  const points = D.settings.map((setting, i) => ({i, x: lost[i], y: learned[i], label: setting.label})).filter(p => p.x && p.y).sort((a, b) => a.x[1] - b.x[1] || b.y[1] - a.y[1]);
  let best = -Infinity;
  const edge = points.filter(p => { const beats = p.y[1] > best; best = Math.max(best, p.y[1]); return beats; });
  const half = (score, end) => score[end] === null ? 0 : Math.abs(score[end] - score[1]);
  const error = pick => ({type: 'data', symmetric: false, array: points.map(p => half(pick(p), 3)), arrayminus: points.map(p => half(pick(p), 2)), thickness: 1, width: 0, color: css('--base')});
  const runs = D.runs.map((run, at) => [ofRuns(D.retention)[at], ofRuns('accuracy', state.split)[at], at]).filter(([x, y]) => Number.isFinite(x) && Number.isFinite(y));
  const xs = fitted([...points.map(p => p.x[1]), ...runs.map(r => r[0]), base[0]], false), ys = fitted([...points.flatMap(p => p.y.slice(1)), ...runs.map(r => r[1]), base[1]], true);
  const near = (a, b) => Math.abs(a.x[1] - b.x[1]) < .25 * (xs[1] - xs[0]) && Math.abs(a.y[1] - b.y[1]) < .06 * (ys[1] - ys[0]);
  const labelled = [...edge, ...points].reduce((kept, p) => kept.includes(p) || kept.some(other => near(p, other)) ? kept : [...kept, p], []);
  plot(id, [
    {x: edge.map(p => p.x[1]), y: edge.map(p => p.y[1]), mode: 'lines', name: 'frontier', line: {color: css('--bad'), width: 1.5, shape: 'hv'}, hoverinfo: 'skip'},
    {x: runs.map(r => r[0]), y: runs.map(r => r[1]), mode: 'markers', name: 'run', visible: runs.length > points.length && runs.length <= 300 ? true : 'legendonly', showlegend: runs.length > points.length,
      marker: {size: 4, opacity: .5, color: css('--muted')}, text: runs.map(r => escaped(D.runs[r[2]].label)), hoverinfo: 'text', customdata: runs.map(r => r[2])},
    {x: points.map(p => p.x[1]), y: points.map(p => p.y[1]), mode: points.length < 9 && innerWidth >= 700 ? 'markers+text' : 'markers', name: 'setting, mean over runs', marker: {size: 10, color: css('--dot')},
      error_y: points.length < 30 ? error(p => p.y) : undefined, textposition: 'top right', hovertext: points.map(p => `${hoverOf(p.label, p.y, title(state.split))}<br>retention: ${digits(p.x[1])}`),
      hoverinfo: 'text', text: points.map(p => labelled.includes(p) ? escaped(short(p.label, 34)) : ''), cliponaxis: false, customdata: points.map(p => runsOf(p.i))},
    ...(base.every(Number.isFinite) ? [{x: [base[0]], y: [base[1]], mode: 'markers', name: 'base model', marker: {symbol: 'diamond-open', size: 11, color: css('--fg'), line: {width: 2}}, hoverinfo: 'name+x+y'}] : []),
  ], {xaxis: named('retention, nats per token', {range: xs}), yaxis: named(`accuracy, ${escaped(title(state.split))}`, {range: ys})});
}

if (box) {
  for (const metric of metricsHere()) $('metric').add(new Option(charted(metric), metric));
  $('metric').value = state.metric;
  $('metric').onchange = () => { state.metric = $('metric').value; changed('metric'); };
  const full = D.axes.length === 2 && D.settings.length >= D.axes[0].values.length * D.axes[1].values.length / 2;
  const kinds = [];
  if (D.axes.length === 1 && D.axes[0].numeric) kinds.push([lines, 'Mean over runs; band: its 95-percent interval on %; small dots: single runs', 420]);
  else if (D.axes.length < 2) kinds.push([dots, D.runs.length > 1 ? 'Mean over runs with its 95-percent interval; small dots: single runs' : 'With the 95-percent interval over facts', 300]);
  else if (full && D.axes.every(one => one.values.length <= 30)) {
    kinds.push([heat, 'Mean over runs of each combination', 300]);
    if (D.axes.some(one => one.numeric && one.values.length > 2) && D.axes.some(one => one.values.length < 15)) kinds.push([manyLines, 'Mean over runs; band: its 95-percent interval', 400]);
  } else kinds.push([parallel, 'A line per setting; in colour its mean over runs', 420]);
  if (D.trials.length > 2) kinds.push([searched, 'The search, trial by trial; the line is the best up to there', 320]);
  if (finite(see(D.retention)).length > 1 && D.axes.length) kinds.push([frontier, 'What is learned against what is forgotten: accuracy over retention on neutral text (nats per token; higher is more forgotten)', 400]);
  $('axes-note').textContent = 'A click on a point selects its runs, and shows them in the table of runs.';
  kinds.forEach(([draw, caption, height], at) => {
    figure(`a-${at}`, caption, height);
    onChange(['metric', 'split'], () => draw(`a-${at}`));
  });
  if ($('a-importance')) onChange([], importance);
}

// ------------------------------------------------------------------------------- curves: of settings, or of selected runs
const CURVED = D.settings.map((_, i) => runsOf(i).filter(run => D.runs[run].curves));  // a setting's runs that have curves
const MANY = CURVED.some(runs => runs.length > 1);
let isolated = null;  // the line that stands out, by the key of what it is of
/** What is drawn: settings (all, or if there are many those of the selected runs), or the selected runs. */
function lined() {
  if (!MANY || $('curves-of').value === 'runs') return drawn().map(run => ({key: `r${run}`, runs: [run], label: D.runs[run].label, slot: state.slots.get(run)}));
  const picked = D.settings.length <= 7 ? D.settings.map((_, i) => i) : [...new Set(drawn().map(run => D.runs[run].setting))].filter(i => i !== null);
  return picked.filter(i => CURVED[i].length).slice(0, DRAWN).map((i, slot) => ({key: `s${i}`, runs: CURVED[i], label: `${D.settings[i].label} (${CURVED[i].length} run${CURVED[i].length > 1 ? 's' : ''})`, slot}));
}
/** [steps, values] of one run; the base model, on all facts of the split, stands at step 0. */
function series(run, metric) {
  const found = D.runs[run].curves;
  if (!found) return [[], []];
  if (metric === 'loss') return found.loss;
  if (!found.splits[state.split]) return [[], []];
  const before = D.metrics[`base/${metric}/${state.split}`]?.[run] ?? null, starts = before !== null && found.steps[0] > 0;
  return [[...(starts ? [0] : []), ...found.steps], [...(starts ? [before] : []), ...found.splits[state.split][metric]]];
}
/** Step -> the values of the runs that have it. */
function together(runs, metric) {
  const at = new Map();
  for (const run of runs) {
    const [steps, values] = series(run, metric);
    steps.forEach((step, i) => { if (values[i] !== null) at.set(step, [...at.get(step) ?? [], values[i]]); });
  }
  return [...at].sort(([a], [b]) => a - b);
}
function curves(id, yText, metrics, extra = {}) {
  const traces = lined().flatMap(({key, runs, label, slot}) => metrics.flatMap(([metric, dash]) => {
    const points = together(runs, metric), color = colour(slot), faded = isolated !== null && isolated !== key, x = points.map(([step]) => step);
    const band = runs.length > 1 && !faded ? [{x: [...x, ...[...x].reverse()], y: [...points.map(([, all]) => Math.max(...all)), ...points.map(([, all]) => Math.min(...all)).reverse()],
      fill: 'toself', fillcolor: color, opacity: .12, line: {width: 0}, mode: 'lines', hoverinfo: 'skip', showlegend: false}] : [];
    return [...band, {x, y: points.map(([, all]) => all.reduce((a, b) => a + b, 0) / all.length), mode: x.length < 30 ? 'lines+markers' : 'lines', name: escaped(label), hoverinfo: 'name+x+y', showlegend: false,
      hoverlabel: {namelength: -1}, marker: {size: 4}, opacity: faded ? .12 : 1, line: {color, width: 1.8, dash: dash ?? (slot >= 7 ? 'dash' : 'solid')}, meta: key}];
  }));
  plot(id, traces, {xaxis: named('optimizer step', {rangemode: 'tozero'}), yaxis: named(yText, extra), margin: {l: 48, r: 14, t: 6, b: 42}});
  if (!$(id).isolates) {
    $(id).isolates = true;
    $(id).on('plotly_click', event => isolate(event.points[0].data.meta));
  }
}
function isolate(key) {
  isolated = isolated === key ? null : key;
  changed('curves');
}
if ($('c-loss')) {
  $('curves-of-control').hidden = !MANY;
  $('curves-of').onchange = () => { isolated = null; changed('curves'); };
  onChange(['runs', 'curves'], () => {
    const lines = lined();
    if (!lines.some(line => line.key === isolated)) isolated = null;
    curves('c-loss', 'loss', [['loss']], {rangemode: 'tozero'});
    const many = state.slots.size, ofRuns = lines.every(line => line.key[0] === 'r');
    const windows = lines.flatMap(line => line.runs).map(run => D.runs[run].curves?.window ?? 1), without = drawn().filter(run => !D.runs[run].curves).length;
    $('curves-key').replaceChildren(...lines.map(line => {
      const button = element('button', {type: 'button', class: 'line', 'aria-pressed': isolated === line.key}, swatch(line.slot), line.label);
      button.onclick = () => isolate(line.key);
      return button;
    }));
    $('curves-note').textContent = [
      ofRuns && !many ? 'No run is selected; the table of runs has a box for each.' : '',
      ofRuns && many > DRAWN ? `${DRAWN} of ${many} selected runs are drawn.` : '',
      ofRuns && without ? `${without} of them left no curves that can be read.` : '',
      !ofRuns ? 'A line is the mean over the runs of a setting, its band from the lowest to the highest.' : '',
      !ofRuns && D.settings.length > 7 ? 'Of many settings those of the selected runs are drawn.' : '',
      lines.length > 1 ? 'A click on a line or its name shows it alone.' : '',
      Math.max(1, ...windows) > 1 ? `Each point of a loss curve is the mean over up to ${Math.max(...windows)} logged steps.` : '',
      $('c-accuracy') ? 'The other curves were measured while training, on at most eval.max_facts facts of a split; step 0 is the base model, and it and the final scores are on all facts.' : '',
      drawn().some(run => D.runs[run].curves?.left_out) ? 'Of many evaluations 60, evenly spread, are drawn.' : '',
    ].filter(Boolean).join(' ');
  });
  if ($('c-accuracy')) onChange(['runs', 'split', 'curves'], () => {
    curves('c-accuracy', 'accuracy', [['accuracy']]);
    curves('c-margin', 'nats', [['margin_nats']]);
    curves('c-logps', 'nats', [['chosen_logp_nats', 'solid'], ['rejected_logp_nats', 'dot']]);
    curves('c-other', 'probability', [['p_other']]);
  });
}

// ------------------------------------------------------------------------------------------- what changed in the facts
function scatter(id, xs, ys, xText, yText, extra) {
  const points = D.runs.map((run, at) => ({at, x: xs?.[at], y: ys?.[at], run})).filter(p => Number.isFinite(p.x) && Number.isFinite(p.y));
  const alarm = p => extra.alarm && p.x - p.y > .2, mine = p => state.slots.has(p.at);
  const trace = (some, marker, name) => ({x: some.map(p => p.x), y: some.map(p => p.y), customdata: some.map(p => p.at), text: some.map(p => escaped(p.run.label)), mode: 'markers', name, marker, cliponaxis: false,
    showlegend: Boolean(name) && some.length > 0, hoverinfo: 'text+x+y'});
  const traces = [
    trace(points.filter(p => !alarm(p)), {size: 8, color: css('--muted'), opacity: .55}, ''),
    trace(points.filter(alarm), {size: 9, symbol: 'x-thin', line: {width: 2, color: css('--bad')}}, 'differ by more than 0.2'),
    ...points.filter(mine).slice(0, DRAWN).map(p => trace([p], {size: 14, symbol: 'circle-open', color: colour(state.slots.get(p.at)), line: {width: 2.5}}, '')),
    ...(extra.traces ?? []),
  ];
  plot(id, traces, {xaxis: named(xText, extra.xaxis), yaxis: named(yText, {range: fitted(points.map(p => p.y), true)}), shapes: extra.shapes ?? []});
}
if ($('f-flips')) onChange(['split', 'runs'], () => {
  const n = see('n', state.split), per = name => FEW.map(i => see(name, state.split)[i] && n[i] ? see(name, state.split)[i][1] / n[i][1] : null);
  const up = per('wrong_to_right'), down = per('right_to_wrong'), names = rowNames(FEW.map(i => D.settings[i].label)), labels = names.map(lines => lines.join(' '));
  const bar = (values, sign, name, color) => ({type: 'bar', orientation: 'h', y: FEW.map((_, at) => at), x: values.map(value => value === null ? null : sign * value), name,
    marker: {color: bright(color)}, text: values.map((value, at) => value === null ? '' : `${labels[at]}<br>${name}: ${(100 * value).toFixed(1)} % of facts`), hoverinfo: 'text', textposition: 'none'});
  const most = 1.1 * Math.max(.05, ...finite([...up, ...down]));
  $('f-flips').style.height = `${100 + (10 + 16 * linesOf(names)) * FEW.length}px`;
  plot('f-flips', [bar(down, -1, 'right to wrong', '#d55e00'), bar(up, 1, 'wrong to right', '#0072b2')], {barmode: 'relative', bargap: .4, margin: {l: 20, r: 14, t: 12, b: 44},
    yaxis: {tickvals: FEW.map((_, at) => at), ticktext: names.map(lines => lines.join('<br>')), showgrid: false, title: {text: ''}, range: [FEW.length - .4, -.6]},
    xaxis: named('share of facts', {range: [-most, most], zeroline: true, zerolinecolor: css('--muted'), tickformat: '.0%'})});
});
if ($('f-reward')) onChange(['runs'], () => {
  const logged = D.metrics['reward_accuracy/train'].map((value, run) => D.metrics['reward_accuracy/train_as_trained']?.[run] ?? value);
  const across = {range: fitted(logged, true)}, from = across.range?.[0] ?? 0;
  scatter('f-reward', logged, D.metrics['accuracy/train'], 'reward accuracy', 'accuracy', {alarm: true, xaxis: across,
    shapes: [{type: 'line', x0: from, y0: from, x1: 1, y1: 1, line: {color: css('--line'), width: 1.5}},
      {type: 'line', x0: Math.max(.2, from), y0: Math.max(0, from - .2), x1: 1, y1: .8, line: {color: css('--bad'), width: 1, dash: 'dash'}}]});
});
