'use strict';
// The overview: every sweep, and every run that belongs to none.
const pageOf = name => `/sweep?folder=${encodeURIComponent(name)}`;

function sweepEntry(sweep) {
  const link = element('a', {href: pageOf(sweep.name)}, sweep.name);
  return element('article', {class: 'sweep'}, element('h3', {}, link), element('p', {class: 'asks'}), stateBar(), element('p', {class: 'facts'}), element('p', {class: 'problem'}));
}
function updateSweep(entry, sweep) {
  const [, question, bar, facts, problem] = entry.children;
  write(question, sweep.question);
  question.hidden = !sweep.question;
  updateStateBar(bar, sweep);
  const parts = [`${many(sweep.total, 'run')}: ${counted(sweep.counts) || 'none yet'}`];
  if (sweep.counts.running && sweep.steps) parts.push(`${percent(sweep.steps)} of all steps`);
  if (sweep.left_seconds !== null) parts.push(`about ${duration(sweep.left_seconds)} left`);
  if (sweep.best) parts.push(`best ${number(sweep.best.mean, 2)} on ${sweep.best.metric}${sweep.counts.running || sweep.counts['to do'] ? ', so far' : ''}`);
  parts.push(`changed ${ago(sweep.changed)}`);
  follow(facts, parts.map((text, at) => ({text, at})), part => part.at, () => element('span'), (span, part) => write(span, part.text));
  write(problem, sweep.problem);
  problem.hidden = !sweep.problem;
}

let last = null;
function show(answer) {
  last = answer;
  write($('root'), answer.root);
  document.title = `${answer.root} | factdpo`;
  $('nothing').hidden = answer.sweeps.length + answer.runs.length > 0;
  $('sweeps-part').hidden = !answer.sweeps.length;
  follow($('sweeps'), answer.sweeps, sweep => sweep.name, sweepEntry, updateSweep);
  $('runs-part').hidden = !answer.runs.length;
  const columns = runColumns(answer.splits, (cell, run) => {
    if (!cell.firstElementChild) cell.append(element('a', {href: pageOf(run.name)}), element('small', {class: 'error'}));
    const [link, error] = cell.children;
    write(link, run.label);
    write(error, run.error);
    error.hidden = !run.error;
  });
  columns.push({key: 'changed', title: 'changed', numeric: true, by: run => -run.changed, show: (cell, run) => write(cell, ago(run.changed))});
  runTable($('table'), columns, answer.runs, run => run.name, () => show(last));
  $('machine').hidden = false;
  showMemory(answer.machine);
}
live('/api/overview', show);
