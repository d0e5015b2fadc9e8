// The graph of who is whose friend, as SVG: names on one circle, an edge per fact; and what a run says.
{
  const SVG = 'http://www.w3.org/2000/svg', G = D.graph, RADIUS = 230;
  const pen = document.createElement('canvas').getContext('2d');
  const X = G.angles.map(angle => RADIUS * Math.cos(angle)), Y = G.angles.map(angle => -RADIUS * Math.sin(angle));
  const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  const numbers = text => new Uint32Array(bytes(text).buffer);
  const margins = text => new Int8Array(bytes(text).buffer);
  const nats = byte => Math.sign(byte) * (byte / G.shade) ** 2;
  const svg = (tag, attributes = {}, ...children) => {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  };

  /** The facts of one split of a run, with what its base or trained model believes: [{fact, right, margin}]. */
  function believed(run, split, model) {
    const where = D.runs[run]?.graph;
    if (!where) return [];
    const plan = G.plans[where.plan], facts = numbers(G.texts[plan.prompts]), found = margins(G.texts[where[model]]);
    let start = 0;
    for (const [name, count] of plan.splits) {
      if (name === split) return [...facts.slice(start, start + count)].map((fact, at) => ({fact: G.prompts[fact], right: found[start + at] > 0, margin: nats(found[start + at])}));
      start += count;
    }
    return [];
  }

  function edge({fact: [prompt, truth, other, i, j], right, margin}, showTruth, crowd) {
    const near = Math.hypot(X[i] + X[j], Y[i] + Y[j]) / (2 * RADIUS), answer = showTruth || right ? truth : other;  // as factdpo/evaluation/belief_graph.py bends them
    const path = svg('path', {d: `M${X[i].toFixed(1)} ${Y[i].toFixed(1)}Q${(near * (X[i] + X[j]) / 2).toFixed(1)} ${(near * (Y[i] + Y[j]) / 2).toFixed(1)} ${X[j].toFixed(1)} ${Y[j].toFixed(1)}`,
      style: `stroke:${ink(answer)};opacity:${showTruth || right ? crowd : .95}`, 'data-i': i, 'data-j': j});
    if (!showTruth && !right) path.setAttribute('stroke-dasharray', '5 3');
    const told = showTruth ? `${prompt} ${truth}` : `${prompt} … ${answer}: ${right ? 'right' : 'wrong'}, margin about ${margin.toFixed(1)} nats`;
    path.append(svg('title', {}, told));
    return path;
  }
  const ink = answer => G.colours[answer] === '#000000' ? css('--fg') : bright(G.colours[answer].toLowerCase());

  function draw(id, facts, showTruth, label) {
    const shown = facts.filter(one => one.fact[3] >= 0 && one.fact[4] >= 0), crowd = Math.min(.85, .35 + 30 / shown.length);
    const size = G.names.length > 60 ? 10 : 14;
    pen.font = `${size}px ${getComputedStyle(document.body).fontFamily}`;
    const reach = along => Math.max(0, ...G.names.map((name, i) => (RADIUS + 18 + pen.measureText(short(name, 26)).width) * Math.abs(along[i]) / RADIUS)) + size;
    const [w, h] = [reach(X), reach(Y)];
    const picture = svg('svg', {class: 'graph', viewBox: `${-w} ${-h} ${2 * w} ${2 * h}`, role: 'group', 'aria-label': label});
    const edges = svg('g');
    for (const one of [...shown.filter(one => one.right || showTruth), ...shown.filter(one => !one.right && !showTruth)]) edges.append(edge(one, showTruth, crowd));
    picture.append(edges);
    const touching = G.names.map(() => [0, 0]);
    for (const one of shown) for (const end of [one.fact[3], one.fact[4]]) { touching[end][0]++; touching[end][1] += !showTruth && !one.right; }
    G.names.forEach((name, i) => {
      const turn = -G.angles[i] * 180 / Math.PI, left = X[i] < 0;
      const text = svg('text', {x: left ? -RADIUS - 12 : RADIUS + 12, y: size * .35, 'text-anchor': left ? 'end' : 'start', style: `font-size:${size}px`,
        transform: `rotate(${left ? turn + 180 : turn})`}, short(name, 26));
      if (left) text.setAttribute('x', -RADIUS - 12);
      const told = `${name}: ${touching[i][0]} facts` + (showTruth ? '' : `, ${touching[i][1]} wrong`);
      const group = svg('g', {tabindex: 0, role: 'img', 'aria-label': told}, svg('circle', {cx: X[i], cy: Y[i], r: 3, class: 'node'}), text, svg('title', {}, told));
      const focus = on => { for (const path of edges.children) path.classList.toggle('faded', on && path.dataset.i != i && path.dataset.j != i); };
      for (const event of ['mouseenter', 'focus']) group.addEventListener(event, () => focus(true));
      for (const event of ['mouseleave', 'blur']) group.addEventListener(event, () => focus(false));
      picture.append(group);
    });
    $(id).replaceChildren(picture);
  }

  function drawGraph() {
    const run = Number($('graph-run').value), model = $('graph-model').value, facts = believed(run, state.split, model);
    const wrong = facts.filter(one => !one.right).length, onlyWrong = $('graph-wrong').checked;
    for (const id of ['g-truth', 'g-belief']) $(id).replaceChildren();
    $('g-title').textContent = model === 'base' ? 'What the base model believes' : `What the trained model believes, ${D.runs[run]?.label}`;
    if (!facts.length || !G.names.length) {
      $('graph-note').textContent = !G.names.length ? 'No fact names two things, so there is no graph.' : 'This run has no such facts, or its items.parquet cannot be read.';
      return;
    }
    draw('g-truth', facts, true, 'The truth');
    draw('g-belief', onlyWrong ? facts.filter(one => !one.right) : facts, false, 'What the model believes');
    $('graph-key').replaceChildren(...Object.keys(G.colours).slice(0, 8).map(answer => {
      const line = svg('svg', {width: 26, height: 12, 'aria-hidden': true}, svg('line', {x1: 0, x2: 26, y1: 6, y2: 6, style: `stroke:${ink(answer)};stroke-width:2.5`}));
      return element('span', {}, line, answer);
    }), element('span', {}, svg('svg', {width: 26, height: 12, 'aria-hidden': true}, svg('line', {x1: 0, x2: 26, y1: 6, y2: 6, style: 'stroke:currentColor;stroke-width:2', 'stroke-dasharray': '5 3'})), 'dashed: wrong'));
    $('graph-note').textContent = `${title(state.split)}: ${wrong} of ${facts.length} wrong, accuracy ${(1 - wrong / facts.length).toFixed(2)}. `
      + `A name shows its own facts when pointed at or focused. ${G.note}`;
  }

  function drawSaid() {
    const {generations, label} = D.runs[Number($('generations-run').value)] ?? {}, body = $('generations-table').tBodies[0];
    $('generations-table').caption.textContent = label ?? '';
    const cell = (text, fact, model) => {
      const begins = fact && text.trim().toLowerCase().startsWith(String(fact).trim().toLowerCase());
      return element('td', {'data-of': model}, begins ? element('strong', {}, text) : text);
    };
    const rows = generations?.map(([split, prompt, fact, base, trained]) => element('tr', {}, element('th', {scope: 'row'}, prompt + ' ', element('small', {}, split === 'fixed' ? 'fixed prompt' : title(split))),
      element('td', {'data-of': 'fact:'}, fact ?? ''), cell(base, fact, 'base:'), cell(trained, fact, 'trained:')));
    body.replaceChildren(...rows ?? [element('tr', {}, element('td', {colspan: 4}, 'No generations of this run can be read.'))]);
  }

  const selects = all('select.run');
  const has = D.runs.map((run, at) => [run, at]).filter(([run]) => 'graph' in run);
  for (const select of selects) {
    for (const [run, at] of has) select.add(new Option(run.label, at));
    select.value = String(D.chosen[0] ?? has[0]?.[1] ?? '');
    select.onchange = () => { selects.forEach(other => { other.value = select.value; }); changed('graph'); };
  }
  if ($('graph-run')) {
    onChange(['split', 'graph'], drawGraph);
    $('graph-model').onchange = $('graph-wrong').onchange = drawGraph;
  }
  if ($('generations-run')) onChange(['graph'], drawSaid);
}

// ---------------------------------------------------------------------------------------------- everything, once; paper
{
  let before;
  addEventListener('beforeprint', () => {
    before = root.dataset.theme;
    theme('light');
    for (const part of all('.only')) part.hidden = false;
    for (const part of all('details.block')) part.open = true;
    for (const chart of all('.js-plotly-plot')) Plotly.relayout(chart, {width: chart.closest('.grid') ? 320 : 660, autosize: false});  // of a page's
  });
  addEventListener('afterprint', () => {
    for (const chart of all('.js-plotly-plot')) Plotly.relayout(chart, {width: null, autosize: true});
    theme(before);
  });
  theme(root.dataset.theme);
}
