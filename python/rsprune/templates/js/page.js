// What the other parts share: the data, colours of the page, parts that need the script.

const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const count = (n) => n.toLocaleString("en-US");
// As Python writes numbers: toFixed rounds what lies in the middle up, Python to the even digit.
const fixed = (x, digits) => {
  const exact = x.toFixed(digits + 40), cut = exact.slice(0, -40);
  const isMiddle = /^50*$/.test(exact.slice(-40));
  return isMiddle && "02468".includes(cut.at(-1)) ? cut : x.toFixed(digits);
};
const percent = (share) => `${fixed(100 * share, 1)} %`;
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// The text of an element that holds compressed UTF-8 as base64.
async function unpacked(id) {
  const bytes = Uint8Array.from(atob(at(id).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

// Shows the controls of a section; its static picture makes room for them.
function enhance(element, { keepStatic = false } = {}) {
  const section = element.closest("section");
  for (const part of section.querySelectorAll(".interactive")) part.hidden = false;
  if (!keepStatic) for (const figure of section.querySelectorAll(".static")) figure.hidden = true;
}

const canUnpack = "DecompressionStream" in window;
