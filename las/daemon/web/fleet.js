"use strict";
// Everything that comes from the cluster is set as text, never as HTML.

const EVERY_MS = 2000;
const SVG = "http://www.w3.org/2000/svg";

function el(tag, text, kind) {
  const node = document.createElement(tag);
  if (text !== undefined && text !== null) node.textContent = text;
  if (kind) node.className = kind;
  return node;
}

function fill(id, children) {
  document.getElementById(id).replaceChildren(...children);
}

function row(cells) {
  const line = el("tr");
  for (const cell of cells) {
    const column = el("td");
    if (cell instanceof Node) column.append(cell);
    else column.textContent = cell === null || cell === undefined ? "" : String(cell);
    line.append(column);
  }
  return line;
}

function size(bytes) {
  if (bytes === null) return "";
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) { bytes /= 1024; unit += 1; }
  return `${bytes.toFixed(bytes < 10 && unit > 0 ? 1 : 0)} ${units[unit]}`;
}

function clock(ms) {
  return new Date(ms).toISOString().replace("T", " ").slice(0, 19);
}

function risk(probability) {
  const cell = el("span");
  if (probability === null) { cell.textContent = "not known"; cell.className = "more"; return cell; }
  const bar = el("span", undefined, "bar");
  const part = el("i", undefined, probability >= 0.8 ? "bad" : probability >= 0.2 ? "warn" : "");
  part.style.width = `${Math.max(1, probability * 100)}%`;
  bar.append(part);
  cell.append(bar, `${(probability * 100).toFixed(1)} %`);
  return cell;
}

function curve(values, digits) {
  const cell = el("span");
  const known = values.filter((value) => value !== null);
  if (!known.length) return cell;
  const top = Math.max(...known, 1e-9);
  const picture = document.createElementNS(SVG, "svg");
  picture.setAttribute("viewBox", "0 0 60 12");
  picture.setAttribute("preserveAspectRatio", "none");
  picture.setAttribute("class", "curve");
  const line = document.createElementNS(SVG, "polyline");
  line.setAttribute("points", values
    .map((value, at) => value === null ? null : `${at * 60 / values.length},${11 - 10 * value / top}`)
    .filter((point) => point !== null).join(" "));
  picture.append(line);
  cell.append(picture, known[known.length - 1].toFixed(digits));
  return cell;
}

function peerState(peer) {
  if (peer.state !== "up") return el("span", peer.state, "bad");
  if (peer.at_risk) {
    const safe = peer.expendable ? "expendable" : peer.shielded ? "shielded"
      : peer.mirrored ? "mirrored" : "being protected";
    const calm = peer.shielded || peer.mirrored;
    const cell = el("span", `at risk, ${safe}`, calm ? "warn" : "bad");
    cell.title = peer.why;
    return cell;
  }
  if (peer.draining) return el("span", peer.expendable ? "drained" : "draining", "warn");
  return el("span", "up", "good");
}

function showNow(fleet) {
  const counts = fleet.counts;
  const membersUp = fleet.members.filter((member) => member.up).length;
  const numbers = [
    ["peers up", `${counts.peers_up} of ${counts.peers}`, counts.peers_up < counts.peers],
    ["LAS nodes up", `${membersUp} of ${fleet.members.length}`, membersUp < fleet.members.length],
    ["shards", counts.shards, false],
    ["take no appends", counts.shards_paused, counts.shards_paused > 0],
    ["segments lack copies", counts.segments_short, counts.segments_short > 0],
    ["at risk", fleet.peers.filter((peer) => peer.at_risk).length,
      fleet.peers.some((peer) => peer.at_risk)],
    ["copies under way", counts.copying, false],
    [fleet.worst.node ? `shards at stake if ${fleet.worst.node} died now` : "shards at stake if any one node died now",
      fleet.worst.shards, fleet.worst.shards > 0],
    ["seconds at stake", fleet.worst.exposed_s, fleet.worst.shards > 0],
  ];
  fill("numbers", numbers.map(([label, value, wrong]) => {
    const item = el("li");
    item.append(el("b", value, wrong ? "bad" : ""), label);
    return item;
  }));
  const warnings = fleet.warnings.map((text) => el("li", text));
  if (!warnings.length) warnings.push(el("li", "nothing is wrong", "well"));
  if (fleet.rebalance.startsWith("moving")) warnings.push(el("li", fleet.rebalance, "well"));
  fill("warnings", warnings);
}

function showTables(fleet) {
  fill("peers", fleet.peers.map((peer) => row([
    peer.name, peerState(peer), risk(peer.p_10_min), peer.primaries, peer.voting, peer.holding,
    size(peer.stored_bytes), size(peer.free_bytes),
    curve(peer.health.appended_per_s, 0), curve(peer.health.flush_ms, 1),
    curve(peer.health.replica_ms, 1),
  ])));
  fill("shards", fleet.shards.map((shard) => row([
    shard.name, shard.epoch, shard.primary, shard.voters.join(", "), shard.others.join(", "),
    shard.sealed,
    shard.trouble ? el("span", shard.trouble, "bad") : el("span", shard.changing ? "changing" : "", "warn"),
  ])));
  const more = (all, shown) => all > shown ? `and ${all - shown} more` : "";
  document.getElementById("peers-more").textContent = more(fleet.counts.peers, fleet.peers.length);
  document.getElementById("shards-more").textContent = more(fleet.counts.shards, fleet.shards.length);
}

function showPast(fleet) {
  fill("events", fleet.events.map((event) => {
    const item = el("li");
    item.append(el("time", clock(event.at_ms)), el("b", event.node), ` ${event.kind.replaceAll("_", " ")}: ${event.text}`);
    return item;
  }));
  if (!fleet.events.length) fill("events", [el("li", "nothing yet", "more")]);
  fill("ledger", fleet.ledger.map((alarm) => row([
    alarm.number, alarm.node, clock(alarm.opened_ms), alarm.probability.toFixed(2),
    alarm.response.replaceAll("_", " "), alarm.outcome.replaceAll("_", " "),
    alarm.outcome === "hit" ? `${(alarm.lead_ms / 1000).toFixed(1)} s` : "",
    alarm.pause_ms >= 0 ? `${alarm.pause_ms} ms` : "", alarm.why,
  ])));
}

function show(fleet) {
  document.title = fleet.warnings.length ? `(${fleet.warnings.length}) peerd` : "peerd";
  const whose = fleet.leads ? "which leads" : fleet.leader
    ? `which follows ${fleet.leader}: forecasts and health are shown there` : "which knows no leader";
  document.getElementById("where").textContent =
    `cluster ${fleet.cluster}, map ${fleet.map_version}, seen from ${fleet.node}, ${whose}`;
  showNow(fleet);
  showTables(fleet);
  showPast(fleet);
}

let seenMs = 0;

async function look() {
  const fresh = document.getElementById("fresh");
  try {
    const answer = await fetch("fleet.json", { cache: "no-store" });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    show(await answer.json());
    seenMs = Date.now();
    fresh.textContent = "live";
    fresh.className = "good";
  } catch (error) {
    const ago = seenMs ? `; what is below is ${Math.round((Date.now() - seenMs) / 1000)} s old` : "";
    fresh.textContent = `this LAS node does not answer${ago}`;
    fresh.className = "bad";
  }
  setTimeout(look, EVERY_MS);
}

look();
