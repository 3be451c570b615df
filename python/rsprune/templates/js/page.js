// What the other parts share: the data, colours of the page, parts that need the script.

const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const count = (n) => n.toLocaleString("en-US");
const percent = (share) => `${(100 * share).toFixed(1)} %`;
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
