// The rank of a found page: words of the question in its title or its address count most, then lessons, then rooms;
// recipes are for those who want every number. Sphinx alone puts equals into the order of the alphabet.
const asked = (new URLSearchParams(window.location.search).get("q") || "").toLowerCase().split(/[\s_]+/).filter(Boolean);
const has = (text, word) => text.includes(word.replace(/s$/, ""));
const named = (text) => asked.filter((word) => has(text.toLowerCase(), word)).length / (asked.length || 1);

var Scorer = {
  score: ([page, title, anchor, , score]) => {
    const place = page.startsWith("00_start/") ? 2 : page.startsWith("recipes/") || !page.includes("/") ? -2 : 0;
    return score + 12 * named(title) + 8 * named(page.replace(/^.*\//, "")) + place - (anchor ? 1 : 0);
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
