// The charts, drawn by plotly from D. Texts from data go through escaped(): plotly reads labels as HTML.
const CONFIG = {responsive: true, displaylogo: false, modeBarButtons: [['toImage', 'zoom2d', 'pan2d', 'resetScale2d']]};
const SPLIT_COLOURS = {train: '#0072b2', train_reversed: '#56b4e9', test: '#d55e00', test_reversed: '#e69f00'};
const SYMBOLS = ['circle', 'circle-open', 'square', 'square-open', 'diamond'];
const isShare = metric => D.shares.includes(metric);
const splitColour = split => bright(SPLIT_COLOURS[split] ?? '#cc79a7');
const splitSymbol = split => SYMBOLS[D.splits.findIndex(([name]) => name === split)] ?? 'x';
const finite = values => values.filter(value => value !== null && value !== undefined);
const digits = value => value === null || value === undefined ? 'none' : String(+value.toPrecision(3));
const range = metric => isShare(metric) ? [-0.02, 1.03] : undefined;
const see = (name, split) => D.means[`${name}/${split}`] ?? [];
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
  const {xaxis, yaxis, ...rest} = layout;
  Plotly.react(id, traces, {
    margin: {l: 48, r: 14, t: 12, b: 44}, paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)',
    font: {family: getComputedStyle(document.body).fontFamily, size: 12, color: css('--fg')}, hovermode: 'closest',
    hoverlabel: {bgcolor: css('--bg'), bordercolor: css('--line'), font: {color: css('--fg')}, align: 'left'},
    legend: {orientation: 'h', x: 0, y: 1.02, yanchor: 'bottom', font: {size: 12}},
    modebar: {color: css('--muted'), activecolor: css('--fg'), bgcolor: 'rgba(0,0,0,0)'},
    ...rest, xaxis: axis('', xaxis), yaxis: axis('', yaxis),
  }, CONFIG);
}
const named = (text, extra = {}) => ({...extra, title: {text, standoff: 8, font: {size: 12}}});
const hoverOf = (label, score, name) => `${escaped(label)}<br>${escaped(name)}: ${digits(score[1])}`
  + (score[2] === null ? '' : ` [${digits(score[2])}, ${digits(score[3])}]`) + `<br>${score[0]} run${score[0] === 1 ? '' : 's'}`;

// ------------------------------------------------------------------------------------------- what the settings do
const box = $('axes-charts');
function figure(id, caption, height) {
  const made = element('figure', {}, element('figcaption', {}, caption), element('div', {class: 'chart', id, style: `height:${height}px`}));
  box.append(made);
}
function metricsHere() {
  return Object.keys(D.charted).filter(metric => D.splits.some(([split]) => finite(see(metric, split)).length));
}

/** A line per split over a numeric axis, with the band of its intervals and a dot per run. */
function lines(id) {
  const [at] = D.axes, metric = state.metric, traces = [], few = D.runs.length <= 300;
  for (const [split, name] of D.splits) {
    const scores = see(metric, split), color = splitColour(split);
    const points = D.settings.map((setting, i) => [setting.values[0], scores[i], setting.label]).filter(([, score]) => score)
      .sort((a, b) => a[0] - b[0]);
    const banded = points.filter(([, score]) => score[2] !== null);
    traces.push({x: [...banded.map(p => p[0]), ...banded.map(p => p[0]).reverse()],
      y: [...banded.map(p => p[1][3]), ...banded.map(p => p[1][2]).reverse()],
      fill: 'toself', fillcolor: color, opacity: .13, line: {width: 0}, mode: 'lines', hoverinfo: 'skip', showlegend: false, legendgroup: split});
    traces.push({x: points.map(p => p[0]), y: points.map(p => p[1][1]), mode: 'lines+markers', name: escaped(name), legendgroup: split,
      line: {color, width: 2, dash: split.endsWith('reversed') ? 'dash' : 'solid'}, marker: {size: 8, symbol: splitSymbol(split)},
      text: points.map(p => hoverOf(p[2], p[1], name)), hoverinfo: 'text'});
    if (few) traces.push({x: D.runs.map(run => run.setting === null ? null : D.settings[run.setting].values[0]), y: D.metrics[`${metric}/${split}`],
      mode: 'markers', marker: {color, size: 4, opacity: .55}, text: D.runs.map(run => escaped(run.label)), hoverinfo: 'text+y', showlegend: false, legendgroup: split});
  }
  traces.push(...baseLine(metric));
  plot(id, traces, {xaxis: named(escaped(at.key), {type: at.log ? 'log' : 'linear', tickvals: at.values.length < 13 ? at.values : undefined,
    ticktext: at.values.length < 13 ? at.values.map(String) : undefined}), yaxis: named(D.charted[metric], {range: range(metric)})});
}
function baseLine(metric) {
  const split = D.splits.some(([name]) => name === 'test') ? 'test' : D.splits[0][0], scores = see(`base/${metric}`, split);
  const points = D.settings.map((setting, i) => [setting.values[0], scores[i]]).filter(([, score]) => score).sort((a, b) => a[0] - b[0]);
  return points.length ? [{x: points.map(p => p[0]), y: points.map(p => p[1][1]), mode: 'lines', line: {color: css('--base'), width: 1.5, dash: 'dot'},
    name: `base model, ${escaped(title(split))}`, hoverinfo: 'y'}] : [];
}

/** A row per setting, or per split where nothing but seeds differ; a dot with its interval for each split. */
function dots(id) {
  const metric = state.metric, traces = [], byRow = D.axes.length > 0;
  const rows = byRow ? FEW.map(i => D.settings[i].label) : D.splits.map(([, name]) => name);
  const gap = .62 / Math.max(1, D.splits.length - 1);
  D.splits.forEach(([split, name], s) => {
    const scores = see(metric, split), base = see(`base/${metric}`, split), color = splitColour(split);
    const off = byRow && D.splits.length > 1 ? s * gap - .31 : 0, y = at => byRow ? at + off : s;
    const points = (byRow ? FEW : [0]).map((i, at) => [y(at), scores[i], base[i], D.settings[i].label]).filter(p => p[1]);
    const half = (p, end) => p[1][end] === null ? 0 : Math.abs(p[1][end] - p[1][1]);
    traces.push({x: points.map(p => p[1][1]), y: points.map(p => p[0]), mode: 'markers', name: escaped(name), showlegend: byRow,
      marker: {color, size: 9, symbol: splitSymbol(split), line: {width: 1.6, color}},
      error_x: {type: 'data', symmetric: false, array: points.map(p => half(p, 3)), arrayminus: points.map(p => half(p, 2)), color, thickness: 1.8, width: 3},
      text: points.map(p => hoverOf(p[3], p[1], name)), hoverinfo: 'text'});
    const before = points.filter(p => p[2]);
    traces.push({x: before.map(p => p[2][1]), y: before.map(p => p[0]), mode: 'markers', name: 'base model', legendgroup: 'base', showlegend: s === 0 && before.length > 0,
      marker: {symbol: 'line-ns', size: 10, line: {width: 2, color: css('--base')}}, hoverinfo: 'x'});
    if (D.runs.length <= 300) {
      const place = new Map(FEW.map((i, at) => [i, at]));
      const runs = D.runs.map((run, at) => [D.metrics[`${metric}/${split}`]?.[at], byRow ? place.get(run.setting) : 0, run.label])
        .filter(([value, row]) => value !== null && value !== undefined && row !== undefined);
      if (runs.length > points.length) traces.push({x: runs.map(r => r[0]), y: runs.map(r => y(r[1]) + (byRow ? 0 : .18)), mode: 'markers',
        marker: {color, size: 4, opacity: .5}, text: runs.map(r => escaped(r[2])), hoverinfo: 'text+x', showlegend: false});
    }
  });
  if (!byRow && metric === 'accuracy') traces.push(...rules());
  const names = rowNames(rows);
  $(id).style.height = `${110 + rows.length * Math.max(byRow ? 18 + 13 * D.splits.length : 46, 16 * linesOf(names) + 6)}px`;
  plot(id, traces, {margin: {l: 20, r: 14, t: 12, b: 44}, xaxis: named(D.charted[metric], {range: range(metric)}),
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
  const scores = see(state.metric, state.split), share = isShare(state.metric);
  const score = (x, y) => scores[D.settings.findIndex(setting => setting.values[i] === x && setting.values[j] === y)] ?? null;
  const table = pick => down.values.map(y => across.values.map(x => pick(score(x, y), x, y)));
  $(id).style.height = `${130 + 44 * down.values.length}px`;
  plot(id, [{type: 'heatmap', x: across.values.map(String), y: down.values.map(String), z: table(found => found && found[1]), colorscale: 'Cividis',
    zmin: share ? 0 : undefined, zmax: share ? 1 : undefined, xgap: 2, ygap: 2,
    customdata: table((found, x, y) => found ? hoverOf(`${across.short}=${x} ${down.short}=${y}`, found, title(state.split)) : 'none'),
    hovertemplate: '%{customdata}<extra></extra>', colorbar: {thickness: 10, outlinewidth: 0, len: 1}}],
  {annotations: across.values.length * down.values.length > 400 ? [] : down.values.flatMap((y, row) => across.values.map((x, column) => numberIn(score(x, y), column, row, share))),
    xaxis: named(escaped(across.key), {type: 'category', showgrid: false}), yaxis: named(escaped(down.key), {type: 'category', showgrid: false})});
}
function numberIn(found, x, y, share) {  // black on the bright half of the colours, white on the dark half
  return {x, y, text: found ? found[1].toFixed(2) : '', showarrow: false, font: {size: 13, color: share && found ? found[1] > .5 ? '#000' : '#fff' : '#000'},
    bgcolor: share ? undefined : 'rgba(255,255,255,.6)'};
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
      text: points.map(p => hoverOf(p[2].label, p[1], title(state.split))), hoverinfo: 'text'});
  });
  plot(id, traces, {xaxis: named(escaped(numeric.key), {type: numeric.log ? 'log' : 'linear', tickvals: numeric.values.length < 13 ? numeric.values : undefined,
    ticktext: numeric.values.length < 13 ? numeric.values.map(String) : undefined}), yaxis: named(D.charted[state.metric], {range: range(state.metric)})});
}

/** Three axes and more: a line per setting through all of them, in the colour of its score. */
const CIVIDIS = ['#00224e', '#31446b', '#666970', '#958f78', '#cab969', '#fee838'];
function parallel(id) {
  const scores = see(state.metric, state.split), known = finite(scores).map(score => score[1]);
  const [low, high] = isShare(state.metric) ? [0, 1] : [Math.min(...known), Math.max(...known)];
  const part = (value, from, to) => to > from ? (value - from) / (to - from) : .5;
  const place = (one, value) => {
    if (!one.numeric) return part(one.values.indexOf(value), 0, one.values.length - 1);
    const scale = one.log ? Math.log : v => v;
    return part(scale(value), scale(one.values[0]), scale(one.values.at(-1)));
  };
  const bins = CIVIDIS.map(() => ({x: [], y: [], text: []}));
  D.settings.forEach((setting, at) => {
    if (!scores[at]) return;
    const score = part(scores[at][1], low, high), bin = bins[Math.min(5, Math.max(0, Math.floor(score * 6)))];
    bin.x.push(...D.axes.map((_, i) => i), D.axes.length, null);
    bin.y.push(...D.axes.map((one, i) => place(one, setting.values[i])), score, null);
    bin.text.push(...Array(D.axes.length + 1).fill(hoverOf(setting.label, scores[at], title(state.split))), '');
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
    xaxis: {tickvals: [...D.axes.map((_, i) => i), D.axes.length], ticktext: [...D.axes.map(one => escaped(one.short)), D.charted[state.metric]], showgrid: false,
      range: [-.1, D.axes.length + .1], title: {text: ''}}, yaxis: {visible: false, range: [-.04, 1.04]}});
}

if (box) {
  for (const metric of metricsHere()) $('metric').add(new Option(D.charted[metric], metric));
  $('metric').value = state.metric;
  $('metric').onchange = () => { state.metric = $('metric').value; changed('metric'); };
  const full = D.axes.length === 2 && D.settings.length >= D.axes[0].values.length * D.axes[1].values.length / 2;
  const kinds = [];
  if (D.axes.length === 1 && D.axes[0].numeric) kinds.push([lines, 'Mean over runs; band: 95 % interval; small dots: single runs', 420]);
  else if (D.axes.length < 2) kinds.push([dots, D.runs.length > 1 ? 'Mean over runs with its 95 % interval; small dots: single runs' : 'With the 95 % interval over facts', 300]);
  else if (full && D.axes.every(one => one.values.length <= 30)) {
    kinds.push([heat, 'Mean over runs of each combination', 300]);
    if (D.axes.some(one => one.numeric && one.values.length > 2) && D.axes.some(one => one.values.length < 15)) kinds.push([manyLines, 'Mean over runs; band: 95 % interval', 400]);
  } else kinds.push([parallel, 'A line per setting; in colour its mean over runs', 420]);
  kinds.forEach(([draw, caption, height], at) => {
    figure(`a-${at}`, caption, height);
    onChange(['metric', 'split'], () => draw(`a-${at}`));
  });
}

// --------------------------------------------------------------------------------------- curves of the selected runs
function curves(id, yText, pick, extra = {}) {
  const traces = drawn().flatMap(run => {
    const found = D.runs[run].curves, slot = state.slots.get(run);
    return found ? pick(found).map(([x, y, dash]) => ({x, y, mode: x.length < 30 ? 'lines+markers' : 'lines', name: escaped(D.runs[run].label), hoverinfo: 'name+x+y', showlegend: false,
      hoverlabel: {namelength: -1}, marker: {size: 4}, line: {color: colour(slot), width: 1.8, dash: dash ?? (slot >= 7 ? 'dash' : 'solid')}})) : [];
  });
  plot(id, traces, {xaxis: named('optimizer step', {rangemode: 'tozero'}), yaxis: named(yText, extra), margin: {l: 48, r: 14, t: 6, b: 42}});
}
const ofSplit = (metric, dash) => found => found.splits[state.split] ? [[found.steps, found.splits[state.split][metric], dash]] : [];
if ($('c-loss')) {
  onChange(['runs'], () => curves('c-loss', 'loss', found => [found.loss], {rangemode: 'tozero'}));
  onChange(['runs', 'split'], () => {
    curves('c-accuracy', 'accuracy', ofSplit('accuracy'), {range: range('accuracy')});
    curves('c-margin', 'nats', ofSplit('margin_nats'));
    curves('c-logps', 'nats', found => [...ofSplit('chosen_logp_nats', 'solid')(found), ...ofSplit('rejected_logp_nats', 'dot')(found)]);
    curves('c-other', 'probability', ofSplit('p_other'), {range: range('p_other')});
    const many = state.slots.size, windows = drawn().map(run => D.runs[run].curves?.window ?? 1), without = drawn().filter(run => !D.runs[run].curves).length;
    $('curves-key').replaceChildren(...drawn().map(run => element('span', {}, swatch(state.slots.get(run)), D.runs[run].label)));
    $('curves-note').textContent = [
      many ? '' : 'No run is selected; the table of runs has a box for each.',
      many > DRAWN ? `${DRAWN} of ${many} selected runs are drawn.` : '',
      without ? `${without} of them left no curves that can be read.` : '',
      Math.max(1, ...windows) > 1 ? `Each point of a loss curve is the mean over up to ${Math.max(...windows)} logged steps.` : '',
      'The other curves were measured while training, on at most eval.max_facts facts of a split; final scores are on all of them.',
      drawn().some(run => D.runs[run].curves?.left_out) ? 'Of many evaluations 60, evenly spread, are drawn.' : '',
    ].filter(Boolean).join(' ');
  });
}

// ------------------------------------------------------------------------------------------- what changed in the facts
function scatter(id, xs, ys, xText, yText, extra) {
  const points = D.runs.map((run, at) => ({at, x: xs?.[at], y: ys?.[at], run})).filter(p => Number.isFinite(p.x) && Number.isFinite(p.y));
  const alarm = p => extra.alarm && p.x - p.y > .2, mine = p => state.slots.has(p.at);
  const trace = (some, marker, name) => ({x: some.map(p => p.x), y: some.map(p => p.y), text: some.map(p => escaped(p.run.label)), mode: 'markers', name, marker, cliponaxis: false,
    showlegend: Boolean(name) && some.length > 0, hoverinfo: 'text+x+y'});
  const traces = [
    trace(points.filter(p => !alarm(p)), {size: 8, color: css('--muted'), opacity: .55}, ''),
    trace(points.filter(alarm), {size: 9, symbol: 'x-thin', line: {width: 2, color: css('--bad')}}, 'differ by more than 0.2'),
    ...points.filter(mine).slice(0, DRAWN).map(p => trace([p], {size: 14, symbol: 'circle-open', color: colour(state.slots.get(p.at)), line: {width: 2.5}}, '')),
    ...(extra.traces ?? []),
  ];
  plot(id, traces, {xaxis: named(xText, extra.xaxis), yaxis: named(yText, {range: range('accuracy')}), shapes: extra.shapes ?? []});
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
  const column = name => D.metrics[`${name}/${state.split}`];
  const logged = D.metrics['reward_accuracy/train']?.map((value, run) => D.metrics['reward_accuracy/train_as_trained']?.[run] ?? value);
  scatter('f-reward', logged, D.metrics['accuracy/train'], 'reward accuracy', 'accuracy', {alarm: true, xaxis: {range: range('accuracy')},
    shapes: [{type: 'line', x0: 0, y0: 0, x1: 1, y1: 1, line: {color: css('--line'), width: 1.5}}, {type: 'line', x0: .2, y0: 0, x1: 1, y1: .8, line: {color: css('--bad'), width: 1, dash: 'dash'}}]});
  const base = finite(D.metrics['base/across/retention_nats_per_token'] ?? []), was = finite(column('base/accuracy') ?? D.metrics[`base/accuracy/${state.split}`] ?? []);
  const mean = values => values.reduce((a, b) => a + b, 0) / values.length;
  scatter('f-retention', D.metrics['across/retention_nats_per_token'], column('accuracy'), 'retention, nats per token', 'accuracy', {
    traces: base.length && was.length ? [{x: [mean(base)], y: [mean(was)], mode: 'markers', name: 'base model', marker: {symbol: 'diamond-open', size: 11, color: css('--fg'), line: {width: 2}}, hoverinfo: 'name+x+y'}] : []});
});
