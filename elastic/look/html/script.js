"use strict";
// Tooltips: a picture says in data-tips what its columns and rows are. Words come in as text, never as markup.
(() => {
  const tip = document.createElement("div");
  tip.className = "look-tip";
  document.body.appendChild(tip);
  const parsed = new WeakMap();
  const tipsOf = (plot) => {
    const known = parsed.get(plot);
    if (known && known.text === plot.dataset.tips) return known.tips;
    const tips = JSON.parse(plot.dataset.tips);
    parsed.set(plot, { text: plot.dataset.tips, tips });
    return tips;
  };
  const cellText = (tips, row, column) => {
    const cell = tips.cells[row][column];
    const head = `${tips.names[row]}, round ${tips.rounds[column]}`;
    if (!cell) return `${head}\nnot in this round`;
    const [tenths, atMost, outcome, share, phases] = cell;
    const lines = [head];
    if (tenths) lines.push(`${atMost ? "there within" : "there after"} ${(tenths / 10).toFixed(1)} s`);
    lines.push(tips.outcomes[outcome] + (share ? `, share ${(share / 10).toFixed(1)} %` : ""));
    if (phases) phases.forEach((value, i) => value && lines.push(`${tips.phases[i]} ${(value / 10).toFixed(1)} s`));
    return lines.join("\n");
  };
  const lineText = (tips, column) => {
    const found = tips.names.map((name, i) => [name, tips.values[i][column]]).filter((each) => each[1] !== null);
    found.sort((a, b) => b[1] - a[1]);
    return [`round ${tips.rounds[column]}`, ...found.map(([name, value]) => `${name}  ${value}${tips.unit}`)].join("\n");
  };
  const textAt = (plot, event) => {
    const tips = tipsOf(plot), box = plot.getBoundingClientRect();
    const part = (value, count) => Math.min(count - 1, Math.max(0, Math.floor(value * count)));
    const column = part((event.clientX - box.left) / box.width, tips.rounds.length);
    if (!tips.cells) return lineText(tips, column);
    return cellText(tips, part((event.clientY - box.top) / box.height, tips.names.length), column);
  };
  const show = (event) => {
    const plot = event.target.closest ? event.target.closest("[data-tips]") : null;
    if (!plot) { tip.style.display = "none"; return; }
    tip.textContent = textAt(plot, event);
    tip.style.display = "block";
    const left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 6);
    const below = event.clientY + 16 + tip.offsetHeight < innerHeight;
    tip.style.left = `${Math.max(6, left)}px`;
    tip.style.top = `${below ? event.clientY + 16 : event.clientY - 12 - tip.offsetHeight}px`;
  };
  document.addEventListener("pointermove", show);
  document.addEventListener("pointerdown", show);
})();
