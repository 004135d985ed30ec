// Who else is in a shared session, and whose turn is next: one line above the conversation, while there is somebody.

export class Company {
  constructor(line, user) {
    this.line = line;
    this.user = user;
    this.clear();
  }

  clear() {
    this.here = [];
    this.waiting = new Map();
    this.running = null;
    this.draw();
  }

  /** Take what the gateway says of a session as it is now. */
  load(sharing) {
    this.here = sharing.here;
    this.running = sharing.running?.sender ?? null;
    this.waiting = new Map(sharing.queue.map((one) => [one.turn_id, one.sender]));
    this.draw();
  }

  hear({ here, queued, started, ended }) {
    if (here) this.here = here;
    if (queued) this.waiting.set(queued.turnId, queued.sender);
    if (started) {
      this.waiting.delete(started.turnId);
      this.running = started.sender;
    }
    if (ended) {
      this.waiting.delete(ended.turnId);
      this.running = null;
    }
    this.draw();
  }

  draw() {
    const name = (user) => (user === this.user ? "you" : user);
    const others = this.here.filter((one) => one.user !== this.user);
    const parts = [];
    if (others.length) parts.push(`Here: ${this.here.map((one) => name(one.user)).join(", ")}`);
    if (this.running && this.running !== this.user) parts.push(`${this.running}'s turn`);
    if (this.waiting.size) parts.push(`next: ${[...this.waiting.values()].map(name).join(", ")}`);
    this.line.textContent = parts.join(" · ");
    this.line.hidden = !parts.length;
  }
}
