// The map of the embeddings with the tile under the pointer, and the map of the earth.

const palette = ["#3b7dd8", "#c2571a", "#2f8f5b", "#b8478f", "#8a6fd1", "#22909c", "#a07a1f", "#d1495b", "#6b8e23", "#9a6a4f"];

if (data.points && canUnpack) {
  const { methods, id, scene, scenes, cluster, reason, reasons, columns, side } = data.points;
  const [chartAt, tile] = [at("map-chart"), at("map-tile")];
  const all = id.map((_, i) => i);
  const most = (codes) => { // the ten most frequent ones have colours of their own
    const sizes = new Map();
    for (const code of codes) if (code >= 0) sizes.set(code, (sizes.get(code) ?? 0) + 1);
    return [...sizes].sort((a, b) => b[1] - a[1] || a[0] - b[0]).map(([code]) => code);
  };
  const kinds = {
    kept: { codes: reason.map((r) => (r === 0 ? 1 : 0)), order: [1, 0], label: (k) => (k ? "kept" : "dropped") },
    scene: { codes: scene, order: most(scene), label: (k) => scenes[k] },
    cluster: { codes: cluster, order: most(cluster), label: (k) => `cluster ${k}` },
  };
  let Plotly;
  let current = -1;
  const kind = () => kinds[at("map-colour").value];
  const points = () => methods[at("map-method")?.value ?? Object.keys(methods)[0]];
  const frame = (values) => { // of all images, so that a part of them is seen in its place
    const [low, high] = [Math.min(...values), Math.max(...values)];
    return [low - 0.04 * (high - low), high + 0.04 * (high - low)];
  };

  const colourOf = (code) => {
    if (kind() === kinds.kept) return colour(code ? "accent" : "bar");
    const place = kind().order.indexOf(code);
    return place >= 0 && place < palette.length ? palette[place] : colour("bar");
  };

  function show(i) {
    current = i;
    const zoom = tile.clientWidth / side;
    tile.style.backgroundImage = `url(${at("atlas").src})`;
    tile.style.backgroundSize = `${columns * side * zoom}px`;
    tile.style.backgroundPosition = `${-(i % columns) * side * zoom}px ${-Math.floor(i / columns) * side * zoom}px`;
    const parts = [reasons[reason[i]].replaceAll("_", " ")];
    if (scene[i] >= 0) parts.push(scenes[scene[i]]);
    parts.push(`cluster ${cluster[i]}`);
    at("map-name").textContent = `${id[i]}: ${parts.join(", ")}`;
    if (Plotly) Plotly.restyle(chartAt, { x: [[points()[0][i]]], y: [[points()[1][i]]] }, [1]);
  }

  const shown = () => {
    const only = at("map-only").value;
    return all.filter((i) => only === "" || kind().codes[i] === Number(only));
  };

  const draw = async () => {
    const [x, y] = points();
    const chosen = shown();
    // What is kept is drawn last, and so on top.
    chosen.sort((a, b) => (reason[b] === 0 ? 0 : 1) - (reason[a] === 0 ? 0 : 1) || a - b);
    const dots = {
      type: "scatter", mode: "markers", x: chosen.map((i) => x[i]), y: chosen.map((i) => y[i]), customdata: chosen, hoverinfo: "none",
      marker: { size: chosen.map((i) => (reason[i] === 0 ? 7 : 5)), color: chosen.map((i) => colourOf(kind().codes[i])), line: { width: 0 }, opacity: 0.9 },
    };
    const ring = {
      type: "scatter", mode: "markers", x: current < 0 ? [] : [x[current]], y: current < 0 ? [] : [y[current]], hoverinfo: "skip",
      marker: { size: 14, color: "rgba(0,0,0,0)", line: { width: 2, color: colour("ink") } },
    };
    await Plotly.react(chartAt, [dots, ring], layout({
      height: chartAt.clientHeight, hovermode: "closest", uirevision: at("map-method")?.value,
      // Distances mean the same in both directions.
      xaxis: { visible: false, range: frame(x) }, yaxis: { visible: false, range: frame(y), scaleanchor: "x" },
    }), config);
    const legend = kind().order.slice(0, palette.length).map((code) => {
      const [entry, key] = [document.createElement("span"), document.createElement("span")];
      [entry.className, key.className, key.style.background] = ["entry", "key dot", colourOf(code)];
      entry.append(key, kind().label(code));
      return entry;
    });
    const rest = kind().order.length - legend.length;
    at("map-legend").replaceChildren(...legend, ...(rest > 0 ? [`and ${rest} more in grey`] : []));
  };

  const choices = () => {
    const options = kind().order.map((code) => new Option(kind().label(code), code));
    at("map-only").replaceChildren(new Option("all", ""), ...options);
  };

  const step = (by) => {
    const [x] = points();
    const order = shown().sort((a, b) => x[a] - x[b] || a - b);
    const place = order.indexOf(current);
    show(order[place < 0 ? 0 : (place + by + order.length) % order.length]);
  };

  enhance(chartAt);
  choices();
  at("map-colour").addEventListener("change", () => { choices(); if (Plotly) draw(); });
  for (const name of ["map-only", "map-method"]) at(name)?.addEventListener("change", () => Plotly && draw());
  at("map-reset").addEventListener("click", () => Plotly?.relayout(chartAt, { "xaxis.range": frame(points()[0]), "yaxis.range": frame(points()[1]) }));
  at("map-next").addEventListener("click", () => step(1));
  at("map-previous").addEventListener("click", () => step(-1));
  chart(chartAt, async (loaded) => {
    const first = !Plotly;
    Plotly = loaded;
    await draw();
    if (!first) return;
    for (const pointed of ["plotly_hover", "plotly_click"]) { // a finger does not hover
      chartAt.on(pointed, (event) => { if (event.points[0].customdata !== undefined) show(event.points[0].customdata); });
    }
  });
}

if (data.geography && canUnpack) {
  const { areas, land } = data.geography;
  const chartAt = at("earth-chart");
  const values = { share: (n, k) => k / n, kept: (n, k) => k, dropped: (n, k) => n - k, images: (n) => n };
  const titles = { share: "share kept", kept: "kept", dropped: "dropped", images: "images" };
  const sum = (rows) => rows.flat().reduce((a, b) => a + b, 0);
  const hover = (n, k) => `${count(k)} of ${count(n)} images kept`;
  const margin = (edge) => { const step = edge.length > 1 ? edge[1] - edge[0] : 0.01; return [edge[0] - step, edge.at(-1) + step]; };
  let Plotly;

  const draw = () => {
    const [what, number] = [at("earth-show").value, at("earth-area").value];
    const area = areas[number];
    const cells = area?.images.map((row, r) => row.map((n, c) => (n ? values[what](n, area.kept[r][c]) : null)));
    const shades = cells?.flat() ?? areas.map((a) => values[what](sum(a.images), sum(a.kept)));
    const most = Math.max(...shades, what === "share" ? 0.01 : 1);
    const ticks = what === "share" ? { tickformat: ".0%" } : most < 5 ? { dtick: 1 } : {}; // no halves of images
    const scale = { colorscale: "Cividis", colorbar: { title: { text: titles[what], side: "right" }, thickness: 12, outlinewidth: 0, ...ticks } };
    const shown = area ? {
      type: "heatmap", x: area.lon, y: area.lat, zmin: 0, zmax: most, hoverongaps: false, xgap: 0.5, ygap: 0.5, ...scale,
      z: cells, text: area.images.map((row, r) => row.map((n, c) => hover(n, area.kept[r][c]))),
      hovertemplate: "%{text}<br>%{y:.2f}°, %{x:.2f}°<extra></extra>",
    } : {
      type: "scatter", mode: "markers", x: areas.map((a) => a.centre[1]), y: areas.map((a) => a.centre[0]),
      marker: { size: 12, line: { width: 1, color: colour("ink") }, cmin: 0, cmax: most, color: shades, ...scale },
      text: areas.map((a) => hover(sum(a.images), sum(a.kept))), hovertemplate: "%{text}<extra></extra>",
    };
    const whole = [Math.min(-60, ...areas.map((a) => a.lat[0])), Math.max(85, ...areas.map((a) => a.lat.at(-1)))];
    // The outlines are good to a quarter of a degree: in a small area they would mislead.
    const visible = !area || Math.max(area.lat.at(-1) - area.lat[0], area.lon.at(-1) - area.lon[0]) > 3;
    const outline = { type: "scatter", mode: "lines", visible, x: land[0], y: land[1], hoverinfo: "skip" };
    const traces = area
      ? [{ ...outline, line: { color: colour("paper"), width: 3.5 } }, shown, { ...outline, line: { color: colour("ink"), width: 1.25 } }]
      : [{ ...outline, fill: "toself", fillcolor: colour("rule"), line: { color: colour("bar"), width: 1 } }, shown];
    return Plotly.react(chartAt, traces, layout({
      height: chartAt.clientHeight, uirevision: number,
      // The axes end where their range does, as there is no latitude beyond the poles.
      xaxis: { range: area ? margin(area.lon) : [-180, 180], nticks: Math.max(2, Math.floor(chartAt.clientWidth / 110)), tickangle: 0, ticksuffix: "°", zeroline: false, constrain: "domain" },
      yaxis: { range: area ? margin(area.lat) : whole, nticks: 8, ticksuffix: "°", zeroline: false, scaleanchor: "x", scaleratio: area ? area.aspect : 1, constrain: "domain" },
    }), config);
  };

  enhance(chartAt);
  for (const name of ["earth-show", "earth-area"]) at(name).addEventListener("change", () => Plotly && draw());
  at("earth-reset").addEventListener("click", () => { if (Plotly) { Plotly.purge(chartAt); draw(); } });
  chart(chartAt, (loaded) => { Plotly = loaded; return draw(); });
}
