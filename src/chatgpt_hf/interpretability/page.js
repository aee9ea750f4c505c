// Responses to taps. Without JavaScript the page still shows everything except the attention maps.
"use strict";

const $ = (selector) => document.querySelector(selector);
const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
const percent = (p) => (p > 0 && p < 0.001 ? "<0.1 %" : `${(100 * p).toFixed(1)} %`);

async function unpack() {
  const stream = new Blob([bytes($("#payload").textContent)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).json();
}

function element(name, text, shade) {
  const made = document.createElement(name);
  made.textContent = text;
  if (shade !== undefined) made.style.setProperty("--v", shade);
  return made;
}

function rows(pairs) {
  const table = element("table", "");
  for (const [text, p] of pairs) {
    const row = element("tr", "");
    row.append(element("td", text, p), element("td", percent(p), 0));
    table.append(row);
  }
  return table;
}

// Shows a token's score on a strip.
function strips() {
  for (const strip of document.querySelectorAll(".strip")) {
    choosable(strip.querySelector(".tokens"), "span", (span) => {
      strip.querySelector(".panel").textContent = `${span.textContent}: ${span.title} ${strip.dataset.unit}`;
    });
  }
}

// Calls `show` for the element that is tapped or focused by keyboard, and marks it.
function choosable(container, selector, show) {
  let chosen = null;
  const choose = (event) => {
    const found = event.target.closest(selector);
    if (!found || found === chosen) return;
    chosen?.classList.remove("chosen");
    chosen = found;
    chosen.classList.add("chosen");
    show(chosen);
  };
  container.addEventListener("click", choose);
  container.addEventListener("focusin", choose);
}

function surprise(data) {
  choosable($("#surprise .tokens"), "span", (span) => {
    const panel = $("#surprise-panel");
    panel.replaceChildren();
    for (let place = +span.dataset.first; place < +span.dataset.end; place += 1) {
      const found = data.surprise[place - data.begin];
      if (place < data.begin || !found) {
        panel.append(element("p", `${data.labels[place]}: part of the input.`));
        continue;
      }
      const [nats, entropy, others] = found;
      panel.append(
        element("p", `${data.labels[place]}: ${percent(Math.exp(-nats))}, a surprise of ${nats.toFixed(2)} nats (expected: ${entropy.toFixed(2)}).`),
        rows(others),
      );
    }
  });
}

function lenses(data) {
  for (const table of document.querySelectorAll(".lens")) {
    const lens = data.lenses[+table.dataset.lens];
    choosable(table, "td", (cell) => {
      const position = +cell.parentNode.dataset.position;
      const [layer, row] = [cell.cellIndex - 1, position - lens.first];
      const where = layer ? `after ${layer} layer${layer > 1 ? "s" : ""}` : "from the embeddings only";
      const next = `${lens.texts[lens.targets[row]]} has rank ${lens.rank[layer][row]} and ${percent(lens.target_p[layer][row])}`;
      const top = lens.top[layer][row].map((place, index) => [lens.texts[place], lens.p[layer][row][index]]);
      table.parentNode.nextElementSibling.replaceChildren(
        element("p", `After ${data.labels[position]}, ${where}: ${next}; ${lens.kl[layer][row].toFixed(2)} nats from the model's prediction.`),
        rows(top),
      );
    });
  }
}

function attention(data) {
  const { layers, heads, all_heads: allHeads } = data.attention;
  const length = data.labels.length;
  const size = (length * (length + 1)) / 2;
  const weights = bytes(data.attention.weights);
  const choices = [];
  if (data.attention.rollout !== null) choices.push({ name: "rollout over all layers", map: bytes(data.attention.rollout) });
  for (let layer = 0; layer < layers; layer += 1) {
    for (let head = 0; head < heads; head += 1) {
      const name = allHeads ? `layer ${layer}, head ${head}` : `layer ${layer}`;
      const begin = (layer * heads + head) * size;
      choices.push({ name, short: allHeads ? `${layer}.${head}` : `${layer}`, map: weights.subarray(begin, begin + size) });
    }
  }
  const select = element("select", "");
  choices.forEach((choice, index) => select.append(new Option(choice.name, index)));
  const label = element("label", "Map: ");
  label.append(select);
  $("#attention-choice").append(label);
  const spans = [...document.querySelectorAll("#attention-text span")];
  let query = length - 1;

  const show = () => {
    const choice = choices[+select.value];
    const begin = (query * (query + 1)) / 2;
    const row = choice.map.subarray(begin, begin + query + 1);
    const largest = Math.max(1, ...row);
    spans.forEach((span, key) => span.style.setProperty("--v", key <= query ? row[key] / largest : 0));
    const top = [...row.keys()].sort((a, b) => row[b] - row[a]).slice(0, 3);
    const taken = top.map((key) => `${data.labels[key]} (${percent(row[key] / 255)})`).join(", ");
    $("#attention-panel").textContent = `${choice.name}: ${data.labels[query]} takes most from ${taken}`;
  };
  choosable($("#attention-text"), "span", (span) => {
    query = +span.dataset.position;
    show();
  });
  select.addEventListener("change", show);

  const color = getComputedStyle(document.documentElement).getPropertyValue("--plus").trim().split(" ").map(Number);
  choices.forEach((choice, index) => {
    // The rollout belongs to no head or layer.
    if (choice.short === undefined) return;
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = length;
    const context = canvas.getContext("2d");
    const image = context.createImageData(length, length);
    for (let place = 0, row = 0; row < length; row += 1) {
      for (let key = 0; key <= row; key += 1, place += 1) {
        // The square root keeps small weights, spread over many tokens, visible.
        image.data.set([...color, Math.sqrt(255 * choice.map[place])], 4 * (row * length + key));
      }
    }
    context.putImageData(image, 0, 0);
    canvas.setAttribute("role", "button");
    canvas.setAttribute("aria-label", choice.name);
    canvas.tabIndex = 0;
    const take = () => {
      select.value = index;
      show();
    };
    canvas.addEventListener("click", take);
    canvas.addEventListener("keydown", (event) => event.key === "Enter" && take());
    const figure = element("figure", "");
    figure.append(canvas, element("figcaption", choice.short));
    $("#attention-maps").append(figure);
  });
  show();
}

// Unfold everything for printing.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => (part.open = true)));

unpack().then((data) => {
  surprise(data);
  strips();
  lenses(data);
  if (data.attention) attention(data);
  document.documentElement.dataset.ready = "yes";
});
