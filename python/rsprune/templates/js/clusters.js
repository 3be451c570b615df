// Sorts the clusters; those beyond the first are shown on demand.

const clusterList = at("cluster-list");
if (clusterList) {
  const first = 24;
  const [order, more] = [at("cluster-order"), at("more-clusters")];
  let everything = clusterList.children.length <= first;

  const arrange = () => {
    const [by, up] = order.value.split(" ");
    const items = [...clusterList.children];
    const sign = up ? 1 : -1;
    items.sort((a, b) => sign * (a.dataset[by] - b.dataset[by]) || a.dataset.cluster - b.dataset.cluster);
    items.forEach((item, i) => { item.hidden = !everything && i >= first; });
    clusterList.append(...items);
    more.hidden = everything;
  };

  order.addEventListener("change", arrange);
  more.addEventListener("click", () => {
    everything = true;
    arrange();
    order.focus();
  });
  enhance(clusterList);
  arrange();
}
