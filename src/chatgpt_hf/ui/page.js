// Conversations are stored here in the browser, and sent only to the model. Events in page.py call these functions, which
// return the new values of the events' outputs.
window.pages = (() => {
  const KEY = "chatgpt-hf:conversations";
  const CURRENT = "chatgpt-hf:current"; // per tab, so that a reload finds its conversation again
  const THEME = "chatgpt-hf:theme";
  let defaultSystem = "";
  let isWriting = false;

  const update = (changes) => ({ __type__: "update", ...changes });

  // Read again each time, because other tabs write it too. Newest first.
  function read() {
    try {
      return JSON.parse(localStorage.getItem(KEY)) || [];
    } catch {
      return [];
    }
  }

  function write(conversations) {
    // A browser allows a few megabytes; when they are used up, drop the oldest conversations.
    for (let count = conversations.length; count >= 0; count--) {
      try {
        localStorage.setItem(KEY, JSON.stringify(conversations.slice(0, count)));
        return;
      } catch {}
    }
  }

  const text = (content) =>
    typeof content === "string" ? content : content.map((part) => part.text || "").join("");

  function list(id, changes = {}) {
    const title = ({ messages }) => messages.find(({ role }) => role === "user")?.content.slice(0, 60) || "…";
    return update({ choices: read().map((one) => [title(one), one.id]), value: id, ...changes });
  }

  function remember(id) {
    if (id) sessionStorage.setItem(CURRENT, id);
    else sessionStorage.removeItem(CURRENT);
  }

  function save(id, history, system, writing) {
    isWriting = writing;
    const others = read().filter((one) => one.id !== id);
    const messages = (history || []).map(({ role, content }) => ({ role, content: text(content) }));
    if (messages.length) {
      id = id || Date.now().toString(36) + Math.random().toString(36).slice(2);
      others.unshift({ id, system, messages });
    } else id = null;
    write(others);
    remember(id);
    if (!writing && innerWidth > 768) setTimeout(() => document.querySelector("#message textarea")?.focus());
    // No other conversation may be opened while an answer is being written.
    return [list(id, { interactive: !writing }), update({ interactive: !writing })];
  }

  function open(id) {
    const found = read().find((one) => one.id === id);
    remember(found?.id);
    const history = (found?.messages || []).map(({ role, content }) => ({
      role,
      content: [{ type: "text", text: content }],
      metadata: null,
      options: null,
    }));
    return [history, found?.system ?? defaultSystem, list(found?.id ?? null), "", "", update({ open: innerWidth > 768 })];
  }

  function remove(id) {
    // The next word of an answer in progress would bring the conversation back.
    if (isWriting) return Array(6).fill(update({}));
    write(read().filter((one) => one.id !== id));
    return open(null);
  }

  function start(system) {
    defaultSystem = system;
    return open(sessionStorage.getItem(CURRENT));
  }

  function showTheme() {
    const chosen = localStorage.getItem(THEME);
    if (chosen) document.body.classList.toggle("dark", chosen === "dark");
  }

  function toggleTheme() {
    localStorage.setItem(THEME, document.body.classList.contains("dark") ? "light" : "dark");
    showTheme();
    return [];
  }

  return { save, open, remove, start, toggleTheme, showTheme };
})();
