// What `rsprune explain` says about an image, word for word, from the facts in the page.

if (canUnpack) {
  const [query, found, panel] = [at("query"), at("found"), at("explanation")];
  const offered = 12;
  let facts;
  let place;

  const load = async () => {
    if (facts) return;
    const read = JSON.parse(await unpacked("facts"));
    place = new Map(read.id.map((id, i) => [id, i]));
    facts = read;
  };

  const single = (value) => (value === null || value === undefined ? null : Math.fround(value));
  const general = (value) => String(Number(value.toPrecision(6)));
  const up = (value) => general(Math.ceil(value * 10000) / 10000);
  const down = (value) => general(Math.floor(value * 10000) / 10000);
  const plural = (n) => (n === 1 ? "1 image" : `${count(n)} images`);
  const nameOf = (other) => (typeof other === "number" ? facts.id[other] : other);

  function halfEven(value) { // as Python rounds
    const whole = Math.floor(value);
    const rest = value - whole;
    return rest > 0.5 || (rest === 0.5 && whole % 2) ? whole + 1 : whole;
  }

  function smallestKeep(position) {
    const steps = 10 ** Math.max(2, Math.ceil(Math.log10(Math.max(facts.readable, 1))) + 1);
    for (let i = Math.max(1, Math.floor(((position - 1) / Math.max(facts.readable, 1)) * steps) - 1); i <= steps; i++) {
      if (Math.max(1, halfEven((i / steps) * facts.readable)) >= position) return i / steps;
    }
    return null;
  }

  function scoreLines(score) {
    const limit = facts.thresholds;
    let first = "Its entropy is unknown: no part of it holds data";
    if (score.entropy !== null) {
      first = `Its entropy is ${fixed(score.entropy, 2)} bits`;
      if (limit.entropy !== null) first += `, ${score.entropy < limit.entropy ? "below" : "not below"} the threshold of ${fixed(limit.entropy, 2)}`;
    }
    const guards = [];
    if (score.nodata_fraction !== null) guards.push(`${fixed(100 * score.nodata_fraction, 1)} % nodata (at most ${general(100 * limit.nodata_fraction)} %)`);
    if (score.saturated_fraction) guards.push(`${fixed(100 * score.saturated_fraction, 1)} % at the ends of the scale (at most ${general(100 * limit.saturated_fraction)} %)`);
    if (score.autocorrelation !== null) guards.push(`autocorrelation ${fixed(score.autocorrelation, 2)} (at least ${general(limit.autocorrelation)})`);
    if (limit.sharpness && score.sharpness !== null) guards.push(`sharpness ${fixed(score.sharpness, 2)} (at least ${general(limit.sharpness)})`);
    const last = guards.pop();
    return last ? [`${first}.`, `It has ${guards.length ? `${guards.join(", ")} and ` : ""}${last}.`] : [`${first}.`];
  }

  function change(reason, score, position, similarity) {
    const compete = "It would compete for a seat";
    if (reason === "kept" || reason === "over_budget") {
      if (!position) return "The strategy ranks only what it keeps: select with a larger --keep to see if that keeps it.";
      const keep = smallestKeep(position);
      return `It ${reason === "kept" ? "stays" : "would be"} kept ${keep === null ? "only with --n" : `from --keep ${general(keep)} on`} (--n ${position} or more).`;
    }
    switch (reason) {
      case "low_entropy": return `${compete} with --entropy-min ${general(Math.floor(score.entropy * 100) / 100)} or less.`;
      case "nodata": return score.entropy === null ? "No setting keeps it, as it has no valid patch." : `${compete} with --nodata-max ${up(score.nodata_fraction)} or more.`;
      case "noise": return `${compete} with --autocorrelation-min ${down(score.autocorrelation)} or less.`;
      case "saturated": return `${compete} with --saturated-max ${up(score.saturated_fraction)} or more, or with a wider --scale.`;
      case "blurred": return `${compete} with --sharpness-min ${down(score.sharpness)} or less.`;
      case "spatial_duplicate": return `${compete} with a larger --spatial-overlap (1 is never) or, if the dates differ, less --duplicate-days.`;
      case "reference_leak": return `${compete} without --exclude-from or --exclude-reference for the set it is in.`;
      case "near_duplicate": return similarity === null ? null : `${compete} with --near-duplicate ${up(similarity + 1e-5)} or more.`;
      case "exact_duplicate": return "No setting keeps both, as they have the same pixels.";
      case "unreadable": return "Mend or replace the file and give the same 'rsprune run' again.";
      default: return null;
    }
  }

  function explain(i) {
    const reason = facts.reasons[facts.reason[i]];
    const score = Object.fromEntries(Object.entries(facts.scores).map(([name, column]) => [name, single(column[i])]));
    const similarity = facts.duplicate_similarity[i] ?? null;
    const [scene, cluster, rank] = [facts.scene[i], facts.cluster[i], facts.rank[i]];
    const lines = [`${facts.id[i]} was ${reason === "kept" ? "kept" : `dropped: ${reason.replaceAll("_", " ")}`}.`];
    if (reason === "unreadable") lines.push(`It could not be used: it ${facts.error[i] ?? "has no embedding"}.`);
    else lines.push(...scoreLines(score));
    if (scene >= 0 && reason !== "unreadable") {
      const how = single(facts.scene_similarity[i]);
      lines.push(`Its scene is ${facts.scenes[scene]}${how === null ? "" : ` (similarity ${fixed(how, 3)})`}.`);
    }
    if (cluster >= 0) {
      const [size, ranked, kept] = facts.clusters.map((column) => column[cluster]);
      const where = facts.in_cluster[i] ? `, where it ranks ${count(facts.in_cluster[i])} of ${count(ranked)}` : "";
      lines.push(`It is in cluster ${cluster} of ${plural(size)}, ${count(kept)} of which ${kept === 1 ? "was" : "were"} kept${where}.`);
    }
    if (rank >= 0) lines.push(`In the whole ranking it is ${count(rank + 1)} of ${count(facts.ranked)}; the first ${count(facts.kept)} were kept.`);
    const stays = nameOf(facts.duplicate_of[i]);
    if (stays !== null) lines.push(`It is a duplicate of ${stays} (cosine ${fixed(similarity, 4)}).`);
    const nearest = nameOf(facts.nearest_kept[i]);
    if (nearest !== null && nearest !== stays) {
      const cosine = single(facts.nearest_kept_similarity[i]);
      lines.push(`The nearest kept image is ${nearest} (cosine ${cosine === null ? "unknown" : fixed(cosine, 4)}).`);
    }
    const turn = change(reason, score, rank + 1, similarity);
    return turn ? [...lines, turn] : lines;
  }

  async function search() {
    await load();
    const text = query.value.trim();
    const lower = text.toLowerCase();
    if (!text) {
      found.replaceChildren();
      panel.replaceChildren();
      return;
    }
    if (place.has(text)) {
      panel.replaceChildren(...explain(place.get(text)).map((line) => Object.assign(document.createElement("p"), { textContent: line })));
      return;
    }
    const like = [];
    for (const id of facts.id) {
      if (id.toLowerCase().includes(lower)) like.push(id);
      if (like.length > offered) break;
    }
    found.replaceChildren(...like.slice(0, offered).map((id) => new Option(id, id)));
    const list = document.createElement("ul");
    for (const id of like.slice(0, offered)) {
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: id });
      button.addEventListener("click", () => { query.value = id; search(); });
      const item = document.createElement("li");
      item.append(button);
      list.append(item);
    }
    const unknown = facts.id.length < facts.total ? "None of the images in this page is called so; rsprune explain knows all of them." : "No image is called so.";
    panel.replaceChildren(like.length ? list : Object.assign(document.createElement("p"), { textContent: unknown }));
  }

  query.addEventListener("focus", load, { once: true });
  query.addEventListener("input", search);
  enhance(query);
}
