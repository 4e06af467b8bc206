"use strict";
// Transcripts: text coloured by KL, what both models thought at a token, rounds side by side.
(() => {
  const source = document.getElementById("transcript-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const at = (id) => document.getElementById(id);
  const rows = at("rows"), panel = at("panel"), more = at("more");
  const STEPS = [0.05, 0.25, 0.75, 1.5, 3];
  const PAGE = 20;
  let shown = PAGE, current = null;

  const make = (name, kind, text) => {
    const element = document.createElement(name);
    if (kind) element.className = kind;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const seen = (text) => text.replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥");
  const nats = (value) => value.toFixed(Math.abs(value) < 1 ? 3 : 2);
  const chance = (thousandths) => {
    const share = Math.exp(thousandths / 1000);
    return share >= 0.001 ? `${(100 * share).toFixed(share >= 0.1 ? 0 : 1)} %` : share.toExponential(1);
  };
  const klOf = (row, n) => row.scored ? (row.student[n] - row.scored[n]) / 1000 : null;
  const colour = (kl) => {
    if (kl === null) return "";
    const step = STEPS.filter((edge) => Math.abs(kl) >= edge).length;
    return step ? `${kl > 0 ? "h" : "l"}${step}` : "";
  };

  const spansOf = (row) => {
    const spans = row.text.map((text) => ({ text, first: 0, count: 0, kl: row.scored ? 0 : null }));
    row.ids.forEach((_, n) => {
      const span = spans[row.joined ? row.joined[n] : n];
      if (!span.count) span.first = n;
      span.count += 1;
      if (row.scored) span.kl += klOf(row, n);
    });
    return spans;
  };

  const table = (title, ids, tops, sampled) => {
    const found = make("table");
    const head = found.appendChild(make("tr"));
    head.append(make("th", "text", title), make("th", "", "id"), make("th", "", "chance"));
    ids.forEach((id, n) => {
      if (id < 0) return;
      const line = found.appendChild(make("tr"));
      const name = make("td", "piece", seen(data.tops[current.run][id] || `⟨${id}⟩`));
      line.append(name, make("td", "", String(id)), make("td", "", chance(tops[n])));
      if (id === sampled) name.append(make("span", "soft", "  sampled"));
    });
    return found;
  };

  const tell = (row, n) => {
    current = row;
    panel.replaceChildren();
    panel.classList.remove("empty");
    const text = row.text[row.joined ? row.joined[n] : n];
    panel.append(make("h3", "", seen(text)));
    const facts = [`token ${n}, id ${row.ids[n]}`, `student ${chance(row.student[n])}`];
    if (row.scored) {
      facts.push(`teacher ${chance(row.scored[n])}, its rank ${row.rank[n]}`);
      facts.push(`KL of this token ${nats(klOf(row, n))} nats`);
    } else facts.push("no teacher scored it: not stored");
    for (const fact of facts) panel.append(make("p", "", fact));
    for (const whose of ["teacher", "student"]) {
      const width = row[`${whose}_width`], start = n * width;
      if (!width) {
        const how = whose === "student" ? " (rollout.candidates stores them)" : "";
        panel.append(make("p", "soft", `likeliest ids of the ${whose}: not stored${how}`));
        continue;
      }
      const kept = row[`${whose}_drawn`] ? "likeliest sampled ids" : "likeliest";
      panel.append(table(`the ${whose}'s ${kept}`, row[`${whose}_ids`].slice(start, start + width),
        row[`${whose}_tops`].slice(start, start + width), row.ids[n]));
    }
  };

  const card = (row, withPrompt) => {
    const found = make("article", "row");
    found.tabIndex = 0;
    const head = found.appendChild(make("div", "head"));
    const facts = [data.runs.length > 1 ? data.runs[row.run] : null, `round ${row.round}`, row.kind,
      row.kl === null ? "KL not stored" : `mean KL ${nats(row.kl)}`,
      row.worst === null ? null : `worst ${nats(row.worst)}`,
      row.finish === "length" ? "cut off" : null, row.reward === null ? null : `reward ${row.reward}`,
      row.reference === null ? null : `reference ${row.reference}`, `${row.ids.length} tokens`];
    for (const fact of facts) if (fact !== null) head.append(make("span", "", fact));
    found.setAttribute("aria-label", `Transcript, round ${row.round}. Arrow keys go from token to token.`);
    if (withPrompt) found.append(make("pre", "prompt", row.prompt));
    const text = found.appendChild(make("pre", "text"));
    text.dir = "auto";
    const spans = spansOf(row);
    const marks = spans.map((span) => {
      const mark = make("span", `t ${colour(span.kl)}`, span.text);
      text.append(mark);
      return mark;
    });
    let here = -1, inside = 0;
    const go = (n, token) => {
      if (here >= 0) marks[here].classList.remove("now");
      here = n;
      inside = token;
      if (n < 0) return;
      marks[n].classList.add("now");
      tell(row, spans[n].first + token);
    };
    text.addEventListener("pointerover", (event) => {
      const n = marks.indexOf(event.target);
      if (n >= 0) go(n, 0);
    });
    found.addEventListener("focusout", () => go(-1, 0));
    text.addEventListener("pointerleave", () => { if (document.activeElement !== found) go(-1, 0); });
    found.addEventListener("keydown", (event) => {
      const last = marks.length - 1;
      if (event.key === "ArrowRight") {
        if (here >= 0 && inside + 1 < spans[here].count) go(here, inside + 1);
        else go(Math.min(last, here + 1), here < last ? 0 : inside);
      } else if (event.key === "ArrowLeft") {
        if (inside > 0) go(here, inside - 1);
        else go(Math.max(0, here - 1), here > 0 ? spans[here - 1].count - 1 : 0);
      } else if (event.key === "Home") go(0, 0);
      else if (event.key === "End") go(last, 0);
      else if (event.key === "w") {
        const order = spans.map((_, n) => n).sort((a, b) => spans[b].kl - spans[a].kl);
        go(order[(order.indexOf(here) + 1) % order.length], 0);
      } else if (event.key === "Escape") {
        go(-1, 0);
        panel.classList.add("empty");
      } else return;
      event.preventDefault();
    });
    return found;
  };

  const picked = () => {
    const round = at("pick-round").value, kind = at("pick-kind").value, words = at("pick-words").value;
    let found = data.rows.filter((row) => (round === "" || row.round === Number(round))
      && (kind === "" || row.kind === kind)
      && (words === "" || row.prompt.includes(words) || row.text.join("").includes(words)));
    const order = at("pick-order").value;
    if (order === "stored") return found;
    const key = order === "token" ? "worst" : "kl";
    found.sort((a, b) => (b[key] === null ? -1e9 : b[key]) - (a[key] === null ? -1e9 : a[key]));
    return order === "ten" && !at("pick-side").checked ? found.slice(0, 10) : found;
  };

  const grouped = (found) => {
    const groups = new Map();
    for (const row of found) {
      const key = `${row.kind} ${row.key}`;
      if (!groups.has(key)) groups.set(key, []);
      groups.get(key).push(row);
    }
    return [...groups.values()].filter((group) => group.length > 1);
  };

  const draw = () => {
    const side = at("pick-side").checked;
    const found = side ? grouped(picked()) : picked();
    rows.replaceChildren(...found.slice(0, shown).map((one) => {
      if (!side) return card(one, true);
      const box = make("div");
      box.append(make("pre", "prompt small", one[0].prompt));
      const group = box.appendChild(make("div", "group"));
      group.append(...[...one].sort((a, b) => a.round - b.round || a.run - b.run).map((row) => card(row, false)));
      return box;
    }));
    more.hidden = found.length <= shown;
    at("count").textContent = `${found.length} ${side ? "prompts in several samples" : "transcripts"}`;
  };

  for (const name of ["pick-round", "pick-kind", "pick-order", "pick-side", "pick-words"])
    at(name).addEventListener("input", () => { shown = PAGE; draw(); });
  more.addEventListener("click", () => { shown += PAGE; draw(); });
  draw();
})();
