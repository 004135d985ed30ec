// What an agent waits for, as cards: a permission, a question, a tool call for this page, a form, a plan. The first answer wins,
// whoever gives it: in another tab, or a program.

import { codeBlock } from "./markdown.js";
import { el, focusPrompt, icon } from "./dom.js";

const DECIDED = {
  approved: "Approved", "approved-for-session": "Approved for this session", "approved-for-location": "Approved",
  "denied-by-rules": "Rejected by rules", "denied-interactively-by-user": "Rejected",
  "denied-by-permission-request-hook": "Rejected", cancelled: "Withdrawn",
};
/** What a button's words are once it was pressed. */
const SAID = {
  Approve: "Approved", "Approve for this session": "Approved for this session", "Approve the plan": "Approved", Reject: "Rejected",
  "Return it": "Returned", "Let it fail": "Failed",
};
const TITLES = {
  permission: "The agent asks for permission", question: "The agent asks", tool: "The agent calls your tool",
  form: "The agent asks you to fill this in", plan: "The agent proposes a plan",
};

export class Card {
  /** `send(answer)` answers the request; it rejects with a problem. */
  constructor(request, send) {
    this.request = request;
    this.send = send;
    this.isOpen = true;
    this.hadFocus = false;
    this.said = null;
    this.problem = el("p", { class: "card-problem", role: "alert", hidden: true });
    this.title = el("h3", { text: TITLES[request.kind] ?? "The agent waits" });
    this.verdict = el("span", { class: "verdict" });
    this.body = el("div", { class: "ask-body" });
    this.element = el(
      "section", { class: "ask", tabindex: "-1", "data-kind": request.kind, "data-testid": "request", "aria-label": this.title.textContent },
      el("header", {}, icon(request.kind === "permission" ? "shield" : request.kind === "tool" ? "tool" : "question"), this.title, this.verdict),
      this.body, this.problem,
    );
    (FORMS[request.kind] ?? FORMS.form)(this, request.data);
  }

  add(...children) {
    this.body.append(...children.filter(Boolean));
  }

  /** Add buttons: [words, answer or function that returns one, class]. */
  actions(...buttons) {
    this.add(el("div", { class: "actions" }, ...buttons.filter(Boolean).map(([words, answer, kind]) => el("button", {
      type: "button", class: `button compact ${kind ?? ""}`, text: words,
      on: { click: () => this.answer(words, typeof answer === "function" ? answer() : answer) },
    }))));
  }

  async answer(words, answer) {
    if (!answer || !this.isOpen) return;
    this.problem.hidden = true;
    // A button that is disabled loses the focus.
    this.hadFocus = this.element.contains(document.activeElement);
    this.said = SAID[words] ?? words;
    this.element.classList.add("sending");
    for (const part of this.controls()) part.disabled = true;
    try {
      await this.send({ kind: this.request.kind, ...answer });
      this.close(this.said);
    } catch (problem) {
      this.said = null;
      if (problem.status === 404 || problem.status === 409) {
        this.close("Answered elsewhere, or no longer needed");
        return;
      }
      this.problem.textContent = problem.message;
      this.problem.hidden = false;
      for (const part of this.controls()) part.disabled = false;
    } finally {
      this.element.classList.remove("sending");
    }
  }

  controls() {
    return this.element.querySelectorAll(":is(.actions, .choices, .answering) :is(button, input, textarea, select), .answering");
  }

  /** The request is over; `words` say how, where that is known. */
  close(words) {
    // What the runtime has said of it meanwhile stands.
    if (words && !this.verdict.textContent) this.verdict.textContent = this.said ?? words;
    if (!this.isOpen) return;
    const isInside = this.element.contains(document.activeElement);
    // Who has gone on to something else meanwhile stays there.
    const hadFocus = isInside || (this.hadFocus && document.activeElement === document.body);
    this.isOpen = false;
    this.element.classList.add("over");
    for (const part of this.element.querySelectorAll(".actions, .choices, .answering")) part.remove();
    if (hadFocus) focusPrompt();
  }

  decided(kind) {
    this.verdict.textContent = DECIDED[kind] ?? this.verdict.textContent;
  }
}

function pretty(value) {
  return typeof value === "string" ? value : JSON.stringify(value, null, 2);
}

const FORMS = {
  permission(card, asked) {
    card.title.textContent = PERMISSIONS[asked.kind]?.(asked) ?? card.title.textContent;
    if (asked.intention) card.add(el("p", { text: asked.intention }));
    const what = asked.fullCommandText ?? asked.diff ?? asked.path ?? asked.fileName ?? asked.url ?? asked.args ?? asked.toolName;
    if (what) card.add(codeBlock(pretty(what), asked.fullCommandText ? "command" : asked.diff ? "diff" : asked.kind));
    if (asked.warning) card.add(el("p", { class: "warn", text: asked.warning }));
    const feedback = el("input", {
      type: "text", placeholder: "Tell the agent why, if you reject", "aria-label": "Reason for a rejection", maxlength: "2000", class: "answering",
    });
    card.add(feedback);
    const canHold = asked.canOfferSessionApproval !== false && ["shell", "mcp", "custom-tool", "read", "write", "memory"].includes(asked.kind);
    card.actions(
      ["Approve", { decision: "approve" }, "primary"],
      canHold && ["Approve for this session", { decision: "approve_for_session" }],
      ["Reject", () => ({ decision: "reject", ...(feedback.value ? { feedback: feedback.value } : {}) }), "danger"],
    );
  },

  question(card, asked) {
    card.add(el("p", { class: "question", text: asked.question ?? "" }));
    const choices = Array.isArray(asked.choices) ? asked.choices : [];
    if (choices.length) {
      card.add(el("div", { class: "choices", role: "group", "aria-label": "Answers" }, ...choices.map((choice) => el("button", {
        type: "button", class: "button compact", text: choice, on: { click: () => card.answer(choice, { answer: choice }) },
      }))));
    }
    if (asked.allowFreeform !== false || !choices.length) {
      const field = el("input", { type: "text", "aria-label": "Your answer", placeholder: choices.length ? "Or answer in your own words" : "Your answer" });
      card.add(el("form", {
        class: "answering row",
        on: { submit: (event) => { event.preventDefault(); if (field.value.trim()) card.answer(field.value, { answer: field.value }); } },
      }, field, el("button", { type: "submit", class: "button compact primary", text: "Answer" })));
    }
  },

  tool(card, asked) {
    card.title.textContent = `The agent calls ${asked.tool}`;
    card.add(codeBlock(pretty(asked.arguments ?? {}), "arguments"));
    const field = el("textarea", { rows: "2", "aria-label": "Result of the tool", class: "answering", placeholder: "What the tool returns: text or JSON" });
    card.add(field);
    card.actions(
      ["Return it", () => ({ result: field.value || "done" }), "primary"],
      ["Let it fail", () => ({ error: field.value || "the tool failed" }), "danger"],
    );
  },

  plan(card, asked) {
    const summary = asked.summary ?? asked.planContent ?? asked.plan;
    if (summary) card.add(codeBlock(pretty(summary), "plan"));
    const feedback = el("input", { type: "text", class: "answering", "aria-label": "What to change", placeholder: "What should be different, if you reject" });
    card.add(feedback);
    card.actions(
      ["Approve the plan", { approved: true }, "primary"],
      ["Reject", () => ({ approved: false, ...(feedback.value ? { feedback: feedback.value } : {}) }), "danger"],
    );
  },

  form(card, asked) {
    if (asked.message) card.add(el("p", { class: "question", text: asked.message }));
    const fields = Object.entries(asked.requestedSchema?.properties ?? {});
    const required = new Set(asked.requestedSchema?.required ?? []);
    const inputs = fields.map(([name, schema]) => [name, schema, inputOf(schema, required.has(name))]);
    const form = el("form", { class: "answering stack" }, ...inputs.map(([name, schema, input]) => el(
      "label", { class: input.type === "checkbox" ? "check" : "field" },
      el("span", { text: (schema.title ?? name) + (required.has(name) ? "" : " (optional)") }), input,
      schema.description ? el("span", { class: "hint", text: schema.description }) : null,
    )), el("div", { class: "actions" },
      el("button", { type: "submit", class: "button compact primary", text: "Send" }),
      el("button", { type: "button", class: "button compact", text: "Decline", on: { click: () => card.answer("Declined", { action: "decline" }) } }),
    ));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const content = Object.fromEntries(inputs.map(([name, schema, input]) => [name, valueOf(schema, input)]).filter(([, value]) => value !== undefined));
      card.answer("Sent", { action: "accept", content });
    });
    card.add(form);
  },
};

const PERMISSIONS = {
  shell: () => "The agent wants to run a command",
  write: () => "The agent wants to change a file",
  read: () => "The agent wants to read a file",
  url: () => "The agent wants to open an address",
  mcp: (asked) => `The agent wants to call ${asked.toolName ?? "a tool"} of ${asked.serverName ?? "a server"}`,
  "custom-tool": (asked) => `The agent wants to call ${asked.toolName ?? "a tool"}`,
  memory: () => "The agent wants to remember something",
};

function inputOf(schema, isRequired) {
  const first = schema.default;
  if (Array.isArray(schema.enum)) {
    const names = schema.enumNames ?? schema.enum;
    return el("select", { required: isRequired }, ...(isRequired ? [] : [el("option", { value: "", text: "" })]),
      ...schema.enum.map((value, number) => el("option", { value, text: names[number], selected: value === first })));
  }
  if (schema.type === "boolean") return el("input", { type: "checkbox", checked: first === true });
  const isNumber = schema.type === "number" || schema.type === "integer";
  return el("input", {
    type: isNumber ? "number" : "text", required: isRequired, value: first, min: schema.minimum, max: schema.maximum,
    step: schema.type === "integer" ? "1" : isNumber ? "any" : null, minlength: schema.minLength, maxlength: schema.maxLength,
  });
}

function valueOf(schema, input) {
  if (input.type === "checkbox") return input.checked;
  if (input.value === "") return undefined;
  return input.type === "number" ? Number(input.value) : input.value;
}
