// The playground: the signed-in user's sessions, and one of them to talk in.

import { call, Follower, sessionPath } from "./api.js";
import { Company } from "./company.js";
import { el, focusPrompt, icon } from "./dom.js";
import { SessionList, nameOf } from "./sessions.js";
import { NEAR_END_PX, Transcript } from "./transcript.js";

const NARROW = window.matchMedia("(max-width: 56rem)");
const TITLE_CHARS = 60;
/** The gateway lists what waits once the stream has come to rest: so long after it opened. */
const REST_MS = 400;

const find = (id) => document.getElementById(id);
const page = {
  root: find("chat"), thread: find("thread"), turns: find("turns"), empty: find("empty"), composer: find("composer"), prompt: find("prompt"),
  send: find("send"), stop: find("stop"), title: find("title"), link: find("link"), linkWords: find("link-words"), retry: find("retry"),
  latest: find("latest"), status: find("status"), drawer: find("drawer"), drawerOpen: find("drawer-open"), drawerClose: find("drawer-close"),
  settings: find("settings"), settingsOpen: find("settings-open"), permissions: find("new-permissions"), tool: find("new-tool"), hint: find("hint"),
  newChat: find("new-chat"),
};

class Playground {
  constructor() {
    this.session = null;
    this.transcript = null;
    this.follower = null;
    this.prompts = [];
    const { user } = page.root.dataset;
    this.list = new SessionList(find("sessions"), find("more"), find("list-problem"), () => this.sessionId, user);
    this.company = new Company(find("company"), page.root.dataset.user);
    this.listen();
    this.list.refresh();
    this.go();
  }

  get sessionId() {
    return new URLSearchParams(location.hash.slice(1)).get("s");
  }

  // -- which session --------------------------------------------------------------------------------------------------------

  go() {
    const token = new URLSearchParams(location.hash.slice(1)).get("join");
    if (token) {
      this.join(token);
      return;
    }
    this.follower?.close();
    this.follower = null;
    this.session = null;
    this.company.clear();
    this.showLink(null);
    this.closeDrawer();
    const id = this.sessionId;
    this.transcript = this.makeTranscript(id);
    if (!id) {
      this.setTitle("New chat");
      this.draw();
      focusPrompt();
      return;
    }
    this.setTitle("…");
    page.root.dataset.loading = "";
    this.list.mark();
    this.load(id);
  }

  /** Become a member of a session that somebody shares; the token leaves the address at once. */
  async join(token) {
    history.replaceState(null, "", "#");
    this.transcript = this.makeTranscript(null);
    try {
      const member = await call("POST", "/v1/share", { token });
      history.replaceState(null, "", `#s=${member.session_id}`);
      this.go();
    } catch (problem) {
      this.refuse(problem);
    }
  }

  /** Return a session: one's own, or one that somebody shares. */
  async find(id) {
    const sharing = call("GET", `${sessionPath(id)}/sharing`).catch(() => null);
    const session = await call("GET", sessionPath(id));
    return [{ ...session, isShared: session.owner !== page.root.dataset.user }, await sharing];
  }

  makeTranscript(id) {
    return new Transcript(page.turns, page.thread, {
      path: id ? sessionPath(id) : "",
      user: page.root.dataset.user,
      company: (said) => this.company.hear(said),
      again: (prompt) => this.send(prompt),
      changed: () => this.draw(),
      caught: () => this.caught(),
      announce: (words) => announce(words),
      asked: (card) => this.asked(card),
      ended: (view) => this.ended(view),
    });
  }

  async load(id) {
    const transcript = this.transcript;
    try {
      const [[session, sharing], known] = await Promise.all([this.find(id), call("GET", `${sessionPath(id)}/turns`)]);
      if (this.transcript !== transcript) return;
      this.session = session;
      if (sharing) this.company.load(sharing);
      if (sharing?.members.length) await this.learnSenders(id, transcript);
      if (this.transcript !== transcript) return;
      for (const turn of known.turns) if (turn.ended_at) transcript.known.set(turn.turn_id, turn);
      this.setTitle(nameOf(session, page.root.dataset.user));
      this.follow(id);
      focusPrompt();
    } catch (problem) {
      if (this.transcript === transcript) this.refuse(problem);
    }
  }

  /** Learn who sent what before now: what the gateway said of turns passes, who sent them is kept with the history. */
  async learnSenders(id, transcript) {
    let after = "";
    do {
      const part = await call("GET", `${sessionPath(id)}/history?limit=1000${after}`);
      for (const event of part.events) if (event.sender) transcript.senders.set(event.data.messageId, event.sender);
      after = part.next ? `&after=${encodeURIComponent(part.next)}` : "";
    } while (after);
  }

  follow(id) {
    const transcript = this.transcript;
    const mine = () => this.transcript === transcript;
    this.follower = new Follower(`${sessionPath(id)}/events`, {
      opened: () => {
        if (!mine()) return;
        this.showLink(null);
        const before = new Set(transcript.cards.keys());
        setTimeout(() => this.rest(transcript, id, before), REST_MS);
      },
      heard: (events) => {
        if (!mine()) return;
        for (const event of events) transcript.hear(event);
        transcript.keepInView();
        this.caught();
      },
      lost: (problem, wait) => mine() && this.showLink(problem, wait),
      refused: (problem) => mine() && this.refuse(problem),
    });
  }

  async rest(transcript, id, before) {
    this.caught();
    try {
      const { requests } = await call("GET", `${sessionPath(id)}/requests`);
      if (this.transcript === transcript) transcript.settle(requests, before);
    } catch {
      // The stream says that the link is broken; nothing to add.
    }
  }

  caught() {
    delete page.root.dataset.loading;
    this.draw();
  }

  refuse(problem) {
    delete page.root.dataset.loading;
    this.follower?.close();
    const isGone = problem.status === 404;
    this.setTitle(isGone ? "Not here" : "Not available");
    page.turns.replaceChildren(el(
      "div", { class: "trouble", role: "alert" }, icon("warning"),
      el("div", {}, el("p", { text: isGone ? "This session is gone, or it is not yours." : problem.message })),
      ...this.wayOut(problem),
    ));
    page.empty.hidden = true;
    page.composer.hidden = true;
  }

  wayOut(problem) {
    if (problem.status === 401) return [el("a", { class: "button compact primary", href: "/sign-in?next=/playground", text: "Sign in again" })];
    if (problem.status === 404) return [el("a", { class: "button compact primary", href: "#", text: "Start a new chat" })];
    return [el("button", { type: "button", class: "button compact", text: "Try again", on: { click: () => this.go() } })];
  }

  // -- talking --------------------------------------------------------------------------------------------------------------

  async send(prompt, title) {
    const text = prompt.trim();
    if (!text) return;
    this.prompts.push(text);
    const sent = this.deliver(text, title);
    page.prompt.value = "";
    this.fit();
    await this.transcript.send(text, sent);
  }

  /** Send a prompt; the first one makes its session. Everything that this tab sends goes out in order. */
  deliver(text, title) {
    const transcript = this.transcript;
    const turn = (this.sending ?? Promise.resolve()).catch(() => {}).then(async () => {
      if (!transcript.host.path) await this.begin(title ?? titleOf(text), transcript);
      return call("POST", `${transcript.host.path}/messages`, { prompt: text, wait_seconds: 0 });
    });
    this.sending = turn;
    return turn;
  }

  async begin(title, transcript) {
    const wanted = { title, permissions: page.permissions.value };
    if (page.tool.checked) wanted.tools = [LOOKUP];
    const session = await call("POST", "/v1/sessions", wanted);
    transcript.host.path = sessionPath(session.session_id);
    if (this.transcript !== transcript) {
      // Its sender looks at another one meanwhile: the message is sent all the same.
      this.list.refresh();
      return;
    }
    this.session = session;
    history.pushState(null, "", `#s=${session.session_id}`);
    this.setTitle(session.options.title);
    this.follow(session.session_id);
    this.list.refresh();
  }

  async stop() {
    if (!this.session) return;
    page.stop.disabled = true;
    try {
      await call("POST", `${this.transcript.host.path}/abort`);
    } catch (problem) {
      announce(problem.message, true);
    } finally {
      page.stop.disabled = false;
    }
  }

  asked(card) {
    announce(`${card.title.textContent}. Your answer is waited for.`);
    // Who writes is not interrupted; who waits is taken to the question, not onto a button that Enter would press.
    if (document.activeElement === page.prompt && !page.prompt.value) card.element.focus({ preventScroll: true });
    this.list.refreshSoon();
    this.draw();
  }

  ended(view) {
    if (view.status === "completed") announce("The answer is complete.");
    this.list.refreshSoon();
  }

  // -- drawing --------------------------------------------------------------------------------------------------------------

  draw() {
    const { isRunning, isEmpty } = this.transcript;
    const isLoading = "loading" in page.root.dataset;
    page.empty.hidden = !isEmpty || isLoading;
    page.composer.hidden = false;
    page.stop.hidden = !isRunning;
    page.root.dataset.running = String(isRunning);
    page.settingsOpen.hidden = !this.session || Boolean(this.session.isShared);
    this.list.mark();
    page.hint.textContent = isRunning ? "Enter queues another message, Esc stops" : "Enter sends, Shift+Enter makes a new line";
  }

  setTitle(words) {
    page.title.textContent = words;
    document.title = `${words} · Aerodrome`;
  }

  showLink(problem, wait = 0) {
    page.link.hidden = !problem;
    if (problem) {
      page.linkWords.textContent = `Connection lost; nothing is missed. Trying again${wait > 1500 ? ` in ${Math.round(wait / 1000)} s` : ""}.`;
    }
  }

  /** Have the field as high as its text, up to a third of the window. */
  fit() {
    page.prompt.style.height = "auto";
    page.prompt.style.height = `${Math.min(page.prompt.scrollHeight + 2, window.innerHeight / 3)}px`;
  }

  closeDrawer() {
    if (page.drawer.classList.contains("open")) {
      page.drawer.classList.remove("open");
      page.drawerOpen.focus();
    }
    this.setDrawer();
  }

  setDrawer() {
    const isOpen = page.drawer.classList.contains("open");
    page.drawer.inert = NARROW.matches && !isOpen;
    page.drawerOpen.setAttribute("aria-expanded", String(isOpen));
  }

  // -- listening ------------------------------------------------------------------------------------------------------------

  listen() {
    window.addEventListener("hashchange", () => this.go());
    window.addEventListener("popstate", () => { if (this.sessionId !== (this.session?.session_id ?? null)) this.go(); });
    page.composer.addEventListener("submit", (event) => {
      event.preventDefault();
      this.send(page.prompt.value);
    });
    page.prompt.addEventListener("input", () => this.fit());
    page.prompt.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.send(page.prompt.value);
      } else if (event.key === "ArrowUp" && !page.prompt.value && this.prompts.length) {
        event.preventDefault();
        page.prompt.value = this.prompts.at(-1);
        this.fit();
      }
    });
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
      if (page.drawer.classList.contains("open")) this.closeDrawer();
      else if (this.transcript.isRunning) this.stop();
    });
    page.stop.addEventListener("click", () => this.stop());
    page.retry.addEventListener("click", () => this.follower?.wake());
    page.newChat.addEventListener("click", (event) => {
      event.preventDefault();
      history.pushState(null, "", "#");
      this.go();
    });
    page.thread.addEventListener("scroll", () => {
      const left = page.thread.scrollHeight - page.thread.scrollTop - page.thread.clientHeight;
      this.transcript.isAtEnd = left < NEAR_END_PX;
      page.latest.hidden = this.transcript.isAtEnd;
    }, { passive: true });
    page.latest.addEventListener("click", () => this.transcript.keepInView(true));
    for (const example of page.empty.querySelectorAll("[data-prompt]")) {
      example.addEventListener("click", () => {
        if (example.dataset.tool !== undefined) page.tool.checked = true;
        this.send(example.dataset.prompt, example.querySelector(".example-title").textContent);
        focusPrompt();
      });
    }
    page.drawerOpen.addEventListener("click", () => {
      page.drawer.classList.add("open");
      this.setDrawer();
      page.newChat.focus();
    });
    page.drawerClose.addEventListener("click", () => this.closeDrawer());
    NARROW.addEventListener("change", () => this.setDrawer());
    this.setDrawer();
    this.listenToSettings();
  }

  listenToSettings() {
    const form = page.settings.querySelector("form");
    const problem = find("settings-problem");
    const busy = async (work) => {
      problem.hidden = true;
      try {
        await work();
        page.settings.close();
      } catch (error) {
        problem.textContent = error.message;
        problem.hidden = false;
      }
    };
    page.settingsOpen.addEventListener("click", () => {
      form.elements.title.value = this.session.options.title ?? "";
      form.elements.permissions.value = this.session.options.permissions ?? "ask";
      find("session-id").textContent = this.session.session_id;
      find("delete").hidden = false;
      find("delete-sure").hidden = true;
      find("share-made").hidden = true;
      find("share").hidden = false;
      problem.hidden = true;
      page.settings.showModal();
    });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      busy(async () => {
        const said = { title: form.elements.title.value, permissions: form.elements.permissions.value };
        this.session = await call("PATCH", this.transcript.host.path, said);
        this.setTitle(this.session.options.title || "Untitled");
        this.list.refresh();
      });
    });
    find("share").addEventListener("click", async () => {
      problem.hidden = true;
      try {
        const wanted = { roles: ["driver", "approver"], uses: 10, seconds: 86400 };
        const { token } = await call("POST", `${this.transcript.host.path}/links`, wanted);
        // Behind the #, which browsers send to nobody.
        find("share-link").textContent = `${location.origin}/playground#join=${encodeURIComponent(token)}`;
        find("share-made").hidden = false;
        find("share").hidden = true;
      } catch (error) {
        problem.textContent = error.message;
        problem.hidden = false;
      }
    });
    find("settings-close").addEventListener("click", () => page.settings.close());
    find("delete").addEventListener("click", () => {
      find("delete").hidden = true;
      find("delete-sure").hidden = false;
      find("delete-sure").focus();
    });
    find("delete-sure").addEventListener("click", () => busy(async () => {
      await call("DELETE", this.transcript.host.path);
      history.replaceState(null, "", "#");
      this.go();
      this.list.refresh();
    }));
  }
}

/** A tool that this page offers an agent: its calls are cards, and what is typed there is its result. */
const LOOKUP = {
  name: "lookup_order",
  description: "Look up an order by its number.",
  parameters: { type: "object", properties: { order: { type: "string" } }, required: ["order"] },
};

function titleOf(prompt) {
  const line = prompt.split("\n")[0].trim();
  return line.length > TITLE_CHARS ? `${line.slice(0, TITLE_CHARS - 1)}…` : line;
}

/** Tell who hears the page instead of seeing it; `isShown` has everyone see it too. */
function announce(words, isShown = false) {
  page.status.textContent = words;
  page.status.classList.toggle("sr-only", !isShown);
  if (isShown) setTimeout(() => page.status.classList.add("sr-only"), 5000);
}

new Playground();
