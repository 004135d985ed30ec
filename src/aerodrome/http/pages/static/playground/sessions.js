// The list of the user's sessions, the most recently used first; read again when something has happened, and from time to time.

import { call } from "./api.js";
import { ago, el } from "./dom.js";

const PAGE = 30;
const EVERY_MS = 15_000;
const STATES = { busy: "working", waiting: "waits for you", idle: "ready", unloaded: "asleep" };

/** Return what a session is called to a user. */
export function nameOf(session, user) {
  return session.owner === user ? session.options.title || "Untitled" : `Shared by ${session.owner}`;
}

export class SessionList {
  constructor(root, more, problem, currentId, user) {
    this.user = user;
    this.root = root;
    this.more = more;
    this.problem = problem;
    this.currentId = currentId;
    this.size = PAGE;
    this.asked = 0;
    this.answered = 0;
    more.addEventListener("click", () => {
      this.size = Math.min(200, this.size + PAGE);
      this.refresh();
    });
    document.addEventListener("visibilitychange", () => this.refresh());
    setInterval(() => this.refresh(), EVERY_MS);
  }

  refreshSoon() {
    clearTimeout(this.soon);
    this.soon = setTimeout(() => this.refresh(), 150);
  }

  async refresh() {
    if (document.hidden) return;
    this.asked += 1;
    const number = this.asked;
    try {
      const found = await call("GET", `/v1/sessions?limit=${this.size}`);
      // Answers may come in another order than they were asked for.
      if (number < this.answered) return;
      this.answered = number;
      this.draw(found.sessions);
      this.more.hidden = !found.next || this.size >= 200;
      this.problem.hidden = true;
    } catch (problem) {
      this.problem.textContent = problem.message;
      this.problem.hidden = false;
    }
  }

  draw(sessions) {
    const focused = document.activeElement?.closest?.("[data-session]")?.dataset.session;
    this.root.replaceChildren(...sessions.map((session) => el("li", {}, el(
      "a", { href: `#s=${session.session_id}`, "data-session": session.session_id, "data-state": session.state },
      el("span", { class: "session-title", text: nameOf(session, this.user) }),
      el("span", { class: "session-facts" },
        el("span", { class: "dot", "aria-hidden": "true" }),
        el("span", { text: `${STATES[session.state] ?? session.state} · ${ago(session.used_at)}` })),
    ))));
    if (!sessions.length) this.root.append(el("li", { class: "quiet small none", text: "Your chats will be listed here." }));
    if (focused) this.root.querySelector(`[data-session="${CSS.escape(focused)}"]`)?.focus();
    this.mark();
  }

  mark() {
    const id = this.currentId();
    for (const link of this.root.querySelectorAll("[data-session]")) {
      if (link.dataset.session === id) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }
}
