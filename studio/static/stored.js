// studio.askForStored: go on with a run that lies in its storage, on this machine.
(() => {
  "use strict";
  if (studio.askForStored) return;
  const { h, icon } = studio;

  /** `server`: fetch({url, endpoint}), fetched({job}). */
  studio.askForStored = (server) => {
    const url = h("input", { name: "url", autocomplete: "off", spellcheck: false, required: true, maxLength: 1000, placeholder: "s3://bucket/folder/its-name", id: "stored-url" });
    const endpoint = h("input", { name: "endpoint", autocomplete: "off", spellcheck: false, maxLength: 500, placeholder: "https://….r2.cloudflarestorage.com", id: "stored-endpoint" });
    const said = h("div", { role: "status" });
    const send = h("button.btn.primary", { type: "submit", id: "stored-fetch" }, icon("play"), h("span", null, "Fetch and go on"));
    const close = h("button.btn", { type: "button", onclick: () => dialog.close() }, "Cancel");
    const form = h("form", { onsubmit: (event) => { event.preventDefault(); begin(); } },
      h("h3", null, "Go on with a stored run"),
      h("p.muted", null, "A run that was stored elsewhere while it trained comes to this machine with its photos, and goes on from its newest checkpoint."),
      h("label.field", null, "Address", url, h("small", null, "As it stood in the recipe, with the run's name: s3://, hf://, gs:// or file:///")),
      h("label.field", null, "Address of the S3 server", endpoint, h("small", null, "Only where that is not Amazon's. Keys are those of the environment that the studio was started with.")),
      said, h("div.buttons", null, send, close));
    const dialog = h("dialog.sheet.stored", { "aria-label": "Go on with a stored run", onclose: () => dialog.remove() }, form);

    function say(text, kind = "") {
      said.replaceChildren(h(`p.notice${kind}`, null, icon(kind ? "alert" : "save"), h("span", null, text)));
    }

    function wait(going) {
      for (const control of [send, url, endpoint]) control.disabled = going;
      close.textContent = going ? "Close; it goes on in the queue" : "Cancel";
    }

    async function begin() {
      wait(true);
      say("Looking for the run…");
      const answer = await server.fetch({ url: url.value, endpoint: endpoint.value }).catch(() => ({ error: "The studio did not answer; try again in a moment." }));
      if (answer.error) {
        wait(false);
        return say(answer.error, ".bad");
      }
      studio.live.kick(false);
      return look(answer.job);
    }

    async function look(job) {
      const now = await server.fetched({ job }).catch(() => null);
      if (!now || ["waiting", "running"].includes(now.state)) {
        if (now) say(now.state === "waiting" ? "It waits in the queue." : now.message || "Looking for the run…");
        return void (dialog.isConnected ? setTimeout(look, 1000, job) : 0);
      }
      if (now.state !== "finished") {
        wait(false);
        return say(now.message || "It was stopped.", ".bad");
      }
      if (!dialog.isConnected) return undefined;
      dialog.close();
      studio.toast(now.message, "good");
      return studio.open(now.project, now.finished ? "results" : "train");
    }

    document.body.append(dialog);
    dialog.showModal();
  };
})();
