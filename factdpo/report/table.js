// The table of runs: sort by a heading, filter by text or range, hide columns, select runs.
{
  const table = $('table'), body = table.tBodies[0], rows = [...body.rows];
  const heads = all('thead th[data-key]', table), filters = all('.filters input', table);
  const cell = (row, column) => row.cells[column + 1];  // the first is the checkbox
  const numeric = heads.map(head => 'numeric' in head.dataset);

  function sort(column) {
    const up = heads[column].getAttribute('aria-sort') !== 'ascending';
    heads.forEach((head, at) => head.setAttribute('aria-sort', at !== column ? 'none' : up ? 'ascending' : 'descending'));
    const keyed = rows.map(row => [cell(row, column).dataset.by, row]);
    keyed.sort(([a], [b]) => {
      if (a === '' || b === '') return (a === '') - (b === '');  // what is missing stands last either way
      const order = numeric[column] ? a - b : a.localeCompare(b, undefined, {numeric: true});
      return up ? order : -order;
    });
    body.append(...keyed.map(([, row]) => row));
  }
  heads.forEach((head, column) => { head.firstElementChild.onclick = () => sort(column); });

  // `>0.9`, `<=3`, `=1` and `0.1..0.3` compare numbers; anything else is looked for in the text.
  function matcher(wanted, isNumeric) {
    const range = wanted.match(/^\s*(-?[\d.e+-]+?)\s*\.\.\s*(-?[\d.e+-]+)\s*$/i);
    const compare = wanted.match(/^\s*(<=|>=|<|>|=)\s*(-?[\d.e+-]+)\s*$/i);
    const low = wanted.trim().toLowerCase();
    if (isNumeric && range) return cell => cell.dataset.by !== '' && +range[1] <= cell.dataset.by && cell.dataset.by <= +range[2];
    if (isNumeric && compare) {
      const bound = +compare[2];
      const holds = {'<': v => v < bound, '<=': v => v <= bound, '>': v => v > bound, '>=': v => v >= bound, '=': v => v === bound};
      return cell => cell.dataset.by !== '' && holds[compare[1]](+cell.dataset.by);
    }
    return cell => cell.textContent.toLowerCase().includes(low);
  }
  function filter() {
    const words = $('filter').value.trim().toLowerCase();
    const tests = filters.map((input, column) => input.value.trim() && [column, matcher(input.value, numeric[column])]).filter(Boolean);
    for (const row of rows) {
      const own = tests.every(([column, holds]) => holds(cell(row, column)));
      row.hidden = !(own && (!words || row.textContent.toLowerCase().includes(words)));
    }
    count();
  }
  [$('filter'), ...filters].forEach(input => input.addEventListener('input', filter));

  function count() {
    const shown = rows.filter(row => !row.hidden).length, many = state.slots.size;
    const over = many > DRAWN ? `; the first ${DRAWN} are drawn` : '';
    $('count').textContent = `${shown} of ${rows.length} runs shown, ${many} selected${over}`;
  }

  // Columns are hidden by one rule each, so that a thousand rows need not be touched.
  const sheet = document.head.appendChild(element('style'));
  const hidden = new Set(heads.flatMap((head, column) => 'hidden' in head.dataset ? [column] : []));
  function hide() {
    const rules = [...hidden].map(column => `#table tr > :nth-child(${column + 2})`);
    sheet.textContent = rules.length ? rules.join(',') + '{display:none}' : '';
  }
  heads.forEach((head, column) => {
    const box = element('input', {type: 'checkbox'});
    box.checked = !hidden.has(column);
    box.onchange = () => { hidden[box.checked ? 'delete' : 'add'](column); hide(); };
    $('columns').append(element('label', {}, box, head.textContent));
  });
  hide();

  const boxes = new Map(rows.map(row => [Number(row.dataset.run), row.querySelector('input')]));
  for (const [run, box] of boxes) box.onchange = () => { select(run, box.checked); changed('runs'); };
  $('pick').onclick = () => {
    for (const row of body.rows) if (!row.hidden && !row.querySelector('input').disabled) select(Number(row.dataset.run), true);
    changed('runs');
  };
  $('unpick').onclick = () => { state.slots.clear(); changed('runs'); };
  onChange(['runs'], () => {
    for (const [run, box] of boxes) box.checked = state.slots.has(run);
    count();
  });
  document.addEventListener('click', event => {  // the menu closes when one clicks beside it
    for (const menu of all('.menu[open]')) if (!menu.contains(event.target)) menu.open = false;
  });
  document.addEventListener('keydown', event => {
    if (event.key === 'Escape') for (const menu of all('.menu[open]')) { menu.open = false; menu.firstElementChild.focus(); }
  });
}
