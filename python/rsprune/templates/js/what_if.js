// The slider over --keep: scenes and duplicates of every budget are in the page.

if (data.budgets && canUnpack) {
  const { percent: shares, images, counts, before, scenes, duplicates, now, ranked, shown, readable } = data.budgets;
  const slider = at("keep");
  const total = before.reduce((a, b) => a + b, 0) || 1;
  const names = scenes.slice(0, shown);
  let Plotly;

  const index = () => Number(slider.value) - shares[0];

  const draw = () => {
    const kept = counts[index()].reduce((a, b) => a + b, 0) || 1;
    const y = names.map((_, i) => i);
    const bars = [[before, total, "bar", "pool"], [counts[index()], kept, "accent", "kept"]];
    const traces = bars.map(([numbers, sum, name, label]) => ({
      type: "bar", orientation: "h", y, x: names.map((_, i) => numbers[i] / sum), marker: { color: colour(name) },
      customdata: names.map((_, i) => [plain(scenes[i]), count(numbers[i])]),
      hovertemplate: `%{customdata[0]}<br>%{customdata[1]} images, %{x:.1%} of the ${label}<extra></extra>`,
    }));
    const largest = Math.max(...names.map((_, i) => Math.max(before[i] / total, ...counts.map((c) => c[i] / (c.reduce((a, b) => a + b, 0) || 1)))));
    return Plotly.react(at("keep-chart"), traces, layout({
      height: 60 + 34 * names.length, bargap: 0.3, bargroupgap: 0.05, dragmode: false,
      xaxis: { tickformat: ".0%", range: [0, 1.05 * largest], fixedrange: true },
      yaxis: { tickvals: y, ticktext: names.map((n) => shortened(n)), range: [names.length - 0.5, -0.5], fixedrange: true, ticks: "outside", tickcolor: "rgba(0,0,0,0)" },
    }), config);
  };

  const say = () => {
    const i = index();
    const present = counts[i].filter((n) => n > 0).length;
    const repeated = duplicates[i] === null ? "" : `, ${percent(duplicates[i])} of them duplicates`;
    const change = images[i] - now;
    const beside = change === 0 ? "as many as now" : `${count(Math.abs(change))} ${change > 0 ? "more" : "fewer"} than now`;
    const all = images[i] === ranked ? " That is every image that may be chosen." : "";
    at("keep-value").textContent = `${shares[i]} %`;
    at("keep-result").textContent = `${count(images[i])} images (${beside})${repeated}; ${present} of ${scenes.length} scenes.${all}`;
  };

  slider.value = Math.min(Math.max(Math.round((100 * now) / Math.max(readable, 1)), shares[0]), shares.at(-1));
  slider.addEventListener("input", () => { say(); if (Plotly) draw(); });
  enhance(slider);
  say();
  if (names.length) chart(at("keep-chart"), (loaded) => { Plotly = loaded; return draw(); });
  else at("keep-chart").hidden = true;
}
