'use strict';
// The report of what has finished, in a frame as tall as it is. When more has finished it is replaced by a new one, unless
// the reader has been at work in it: then that is offered, and what was sorted, selected and opened stays until it is taken.
const EVERY_MS = 20000, SHARE = 0.1;  // of one core's time, at most, while the runs need it: a report takes seconds to make
let frame = null, coming = null, shownOf = '', touched = false, nextAt = 0;

function results(answer) {
  $('results').hidden = !answer.results;
  document.querySelector('nav a[href="#results"]').hidden = !answer.results;
  if (!answer.results || coming) return;
  $('alone').href = `/report?folder=${encodeURIComponent(folder)}`;
  const fresh = shownOf === answer.results;
  $('renew').hidden = fresh || !touched;
  if (fresh) write($('results-note'), '');
  else if (touched) write($('results-note'), 'More runs have ended since this report was made.');
  else if (performance.now() > nextAt || !answer.counts.running) load(answer.results);
}

/** The new report is loaded out of sight and shown when it is ready, so that the page does not jump. */
function load(stamp) {
  write($('results-note'), frame ? 'The report is being updated.' : 'The report is being made.');
  $('renew').hidden = true;
  const began = performance.now();
  coming = element('iframe', {title: 'Report of the finished runs', src: `/report?folder=${encodeURIComponent(folder)}`, class: 'coming'});
  coming.onload = () => {
    const inside = coming.contentDocument;
    for (const part of inside.querySelectorAll('nav, .skip, .eyebrow, h1, footer')) part.hidden = true;  // this page has its own
    inside.documentElement.style.overflowY = 'hidden';
    const made = coming, fit = () => { made.style.height = `${Math.ceil(inside.body.getBoundingClientRect().height)}px`; };
    new ResizeObserver(fit).observe(inside.body);
    fit();
    for (const what of ['pointerdown', 'keydown', 'input']) inside.addEventListener(what, () => { touched = true; }, true);
    for (const link of inside.querySelectorAll('a[href^="#"]')) link.onclick = event => {  // its own targets, scrolled to in this page
      const target = inside.getElementById(link.hash.slice(1));
      event.preventDefault();
      window.scrollBy({top: made.getBoundingClientRect().top + target.getBoundingClientRect().top - 64});
    };
    frame?.remove();
    made.classList.remove('coming');
    [frame, coming, shownOf, touched] = [made, null, stamp, false];
    nextAt = performance.now() + Math.max(EVERY_MS, (performance.now() - began) / SHARE);
    sameTheme();
    write($('results-note'), '');
  };
  $('frames').append(coming);
}
function sameTheme() {
  frame?.contentWindow.theme?.(isDark() ? 'dark' : 'light');  // the report's own
}
$('renew').onclick = () => load(last.results);
document.addEventListener('theme', sameTheme);
