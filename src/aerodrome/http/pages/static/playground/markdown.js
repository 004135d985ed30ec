// Markdown as elements. What a model says is data: it is never parsed as HTML, links lead to the web or mail only, images are not
// loaded (a picture's address can carry a conversation away), and what is no markdown is text.

import { copyButton, el } from "./dom.js";

// Each of these reads a line once: two parts that can match the same would make a long line take minutes.
const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s(.*)$/;
const RULE = /^ {0,3}([-*_])\s*(?:\1\s*){2,}$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])( +|$)/;
/** Of a line without blanks around it. */
const DIVIDER = /^\|?\s*:?-{1,}:?\s*(\|\s*:?-{1,}:?\s*)*\|?$/;
/** Deeper nesting and longer lines are text: nobody reads them as more, and they cost time. */
const DEEPEST = 8;
const LONGEST = 5_000;

/** Return markdown as a fragment. */
export function render(text) {
  const made = document.createDocumentFragment();
  made.append(...blocks(text.replace(/\r\n?/g, "\n").replace(/\t/g, "    ").split("\n"), 0));
  return made;
}

function blocks(lines, depth) {
  const made = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    if (!line.trim()) {
      at += 1;
      continue;
    }
    const [node, next] = block(lines, at, depth);
    made.push(node);
    at = next;
  }
  return made;
}

function block(lines, at, depth) {
  const line = lines[at];
  let found = FENCE.exec(line);
  if (found) return fence(lines, at, found[1], found[2].trim().split(/\s/, 1)[0]);
  found = HEADING.exec(line);
  if (found) return [el(`h${Math.min(6, found[1].length + 2)}`, {}, ...inline(withoutClosing(found[2]), 0)), at + 1];
  if (RULE.test(line)) return [el("hr"), at + 1];
  if (depth < DEEPEST && QUOTE.test(line)) return quote(lines, at, depth);
  if (depth < DEEPEST && ITEM.test(line)) return list(lines, at, depth);
  if (line.includes("|") && at + 1 < lines.length && lines[at + 1].includes("-") && DIVIDER.test(lines[at + 1].trim())) {
    const [node, next] = table(lines, at);
    if (node) return [node, next];
  }
  return paragraph(lines, at, depth);
}

/** Return the words of a heading, without the marks that may close it. */
function withoutClosing(text) {
  const words = text.trim();
  let end = words.length;
  while (end && words[end - 1] === "#") end -= 1;
  return words.slice(0, end).trimEnd();
}

function fence(lines, at, mark, language) {
  const closing = new RegExp(`^ {0,3}${mark[0]}{${mark.length},}\\s*$`);
  let end = at + 1;
  while (end < lines.length && !closing.test(lines[end])) end += 1;
  const text = lines.slice(at + 1, end).join("\n");
  return [codeBlock(text, language), Math.min(end + 1, lines.length)];
}

/** Return a block of code with its language and a button that copies it. */
export function codeBlock(text, language) {
  const code = el("code", { text });
  return el(
    "div", { class: "code" },
    el("div", { class: "code-head" }, el("span", { text: language || "text" }), copyButton(() => code.textContent)),
    el("pre", { tabindex: "0" }, code),
  );
}

function quote(lines, at, depth) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const inner = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return [el("blockquote", {}, ...blocks(inner, depth + 1)), end];
}

function list(lines, at, depth) {
  const first = ITEM.exec(lines[at]);
  const isOrdered = /\d/.test(first[2]);
  const items = [];
  let end = at;
  while (end < lines.length) {
    const found = ITEM.exec(lines[end]);
    if (!found || /\d/.test(found[2]) !== isOrdered || RULE.test(lines[end])) break;
    const indent = Math.min(found[0].length, found[1].length + found[2].length + 4) || 2;
    const inner = [lines[end].slice(found[0].length)];
    end += 1;
    while (end < lines.length) {
      const line = lines[end];
      const isInside = line.startsWith(" ".repeat(indent)) || (/^ {2,}\S/.test(line) && !ITEM.test(line.trimStart().padStart(line.length)));
      const isLazy = line.trim() && !ITEM.test(line) && inner.at(-1).trim() && !startsBlock(line);
      const isNested = /^ {2,}/.test(line) && ITEM.test(line.trimStart());
      const goesOn = !line.trim() && end + 1 < lines.length && lines[end + 1].startsWith(" ".repeat(Math.min(indent, 2)));
      if (!(isInside || isLazy || isNested || goesOn)) break;
      inner.push(line.slice(Math.min(indent, line.length - line.trimStart().length)));
      end += 1;
    }
    while (end < lines.length && !lines[end].trim() && end + 1 < lines.length && ITEM.test(lines[end + 1])) end += 1;
    const children = blocks(inner, depth + 1);
    items.push(el("li", {}, ...children.flatMap((child) => (child.tagName === "P" ? [...child.childNodes] : [child]))));
  }
  const start = isOrdered ? Number.parseInt(first[2], 10) : 1;
  return [el(isOrdered ? "ol" : "ul", { start: isOrdered && start !== 1 ? String(start) : null }, ...items), end];
}

function cells(line) {
  return line.trim().replace(/^\|/, "").replace(/\|$/, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replace(/\\\|/g, "|"));
}

function table(lines, at) {
  const heads = cells(lines[at]);
  const sides = cells(lines[at + 1]).map((cell) => (/^-+:$/.test(cell) ? "num" : null));
  if (heads.length !== sides.length) return [null, at];
  const rows = [];
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|") && lines[end].trim()) {
    const row = cells(lines[end]);
    rows.push(el("tr", {}, ...heads.map((_, number) => el("td", { class: sides[number] }, ...inline(row[number] ?? "", 0)))));
    end += 1;
  }
  const head = el("thead", {}, el("tr", {}, ...heads.map((cell, number) => el("th", { class: sides[number] }, ...inline(cell, 0)))));
  return [el("div", { class: "table-wrap", tabindex: "0" }, el("table", {}, head, el("tbody", {}, ...rows))), end];
}

function startsBlock(line) {
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line);
}

/** Say whether a line of a paragraph ends where its writer ended it. */
function breaks(line) {
  return line.endsWith("  ") || line.endsWith("\\");
}

function paragraph(lines, at, depth) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !(startsBlock(lines[end]) && depth < DEEPEST)) end += 1;
  const made = [];
  lines.slice(at, end).forEach((line, number, all) => {
    if (number) made.push(breaks(all[number - 1]) ? el("br") : document.createTextNode("\n"));
    made.push(...inline((breaks(line) ? line.slice(0, -1) : line).trim(), 0));
  });
  return [el("p", {}, ...made), end];
}

const TOKEN = /\\([!-/:-@[-`{-~])|(`+)|(!?)\[|(\*\*|__|~~|\*|_)|<((?:https?:\/\/|mailto:)[^\s<>]+)>|(https?:\/\/[^\s<>"]+)/;

/** Return the nodes of a line: code, emphasis, links, and text. */
function inline(text, depth) {
  if (text.length > LONGEST || depth > DEEPEST) return [document.createTextNode(text)];
  const made = [];
  const pattern = new RegExp(TOKEN, "g");
  let from = 0;
  const plain = (to) => { if (to > from) made.push(document.createTextNode(text.slice(from, to))); };
  for (;;) {
    pattern.lastIndex = from;
    const found = pattern.exec(text);
    if (!found) break;
    const [node, end] = span(text, found, depth);
    if (node === null) {
      // Not what it looked like: text, and looked at no more.
      plain(found.index + found[0].length);
      from = found.index + found[0].length;
      continue;
    }
    plain(found.index);
    made.push(...node);
    from = end;
  }
  plain(text.length);
  return made;
}

function span(text, found, depth) {
  const [all, escaped, ticks, bang, mark, angled, bare] = found;
  const after = found.index + all.length;
  if (escaped) return [[document.createTextNode(escaped)], after];
  if (ticks) {
    const closing = closingTicks(text, after, ticks.length);
    if (closing < 0) return [null, after];
    return [[el("code", { text: text.slice(after, closing).replace(/^ (.*\S.*) $/, "$1") })], closing + ticks.length];
  }
  if (angled) return [[link(angled, [document.createTextNode(angled)])], after];
  if (bare) {
    const address = bare.replace(/[.,:;!?'")\]]+$/, "");
    return [[link(address, [document.createTextNode(address)])], found.index + address.length];
  }
  if (mark) return emphasis(text, found.index, mark, depth);
  return linked(text, after, Boolean(bang), depth);
}

function closingTicks(text, from, size) {
  for (const found of text.slice(from).matchAll(/`+/g)) if (found[0].length === size) return from + found.index;
  return -1;
}

function emphasis(text, at, mark, depth) {
  const after = at + mark.length;
  // Inside a word, underscores are part of it: snake_case.
  const isWord = mark.includes("_") && /\w/.test(text[at - 1] ?? "");
  if (isWord || !text[after] || /\s/.test(text[after])) return [null, after];
  let closing = text.indexOf(mark, after);
  while (closing > 0) {
    const isOpen = /\s/.test(text[closing - 1]) || (mark.includes("_") && /\w/.test(text[closing + mark.length] ?? ""));
    const isLonger = mark.length === 1 && (text[closing + 1] === mark || text[closing - 1] === mark);
    if (closing > after && !isOpen && !isLonger) break;
    closing = text.indexOf(mark, closing + (isLonger ? 2 : 1));
  }
  if (closing <= after) return [null, after];
  const tag = mark === "~~" ? "del" : mark.length === 2 ? "strong" : "em";
  return [[el(tag, {}, ...inline(text.slice(after, closing), depth + 1))], closing + mark.length];
}

function linked(text, after, isImage, depth) {
  const middle = text.indexOf("](", after);
  if (middle < 0 || text.slice(after, middle).includes("[")) return [null, after];
  const closing = text.indexOf(")", middle);
  if (closing < 0) return [null, after];
  const address = text.slice(middle + 2, closing).trim().split(/\s+/)[0].replace(/^<|>$/g, "");
  const words = text.slice(after, middle) || address;
  const inner = isImage ? [document.createTextNode(`image: ${words}`)] : inline(words, depth + 1);
  return [[link(address, inner)], closing + 1];
}

/** Return a link to the web or mail; any other address is shown, not linked. */
function link(address, children) {
  let scheme = "";
  try {
    scheme = new URL(address).protocol;
  } catch {
    // Relative: there is nothing of this page's to lead to.
  }
  if (!["http:", "https:", "mailto:"].includes(scheme)) return el("span", { title: address }, ...children);
  return el("a", { href: address, rel: "noopener noreferrer nofollow", target: "_blank", title: address }, ...children);
}
