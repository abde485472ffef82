/* The live page: one WebSocket, text nodes only, reconnects by itself and says when what it shows is old. */
(() => {
    "use strict";
    const page = document.getElementById("live");
    if (!page) return;
    const KEPT = 50, WINDOW = 40, STALE_MS = 3000;
    const stale = document.getElementById("live-stale");
    const history = [];
    let heard = 0, wait = 500, refused = false;

    const text = (name, value) => page.querySelectorAll(`[data-figure="${name}"]`).forEach((node) => { node.textContent = value; });
    const cell = (value, kind) => {
        const node = document.createElement("td");
        node.textContent = value;
        if (kind) node.className = kind;
        return node;
    };
    const short = (value) => value >= 1e6 ? `${(value / 1e6).toFixed(1)} M` : value >= 1e4 ? `${(value / 1e3).toFixed(1)} k` : value.toFixed(value < 10 && value % 1 ? 1 : 0);
    const usd = (nanos) => (nanos / 1e9).toFixed(nanos && nanos < 1e6 ? 6 : 4);
    const age = (seconds) => seconds < 60 ? `${seconds.toFixed(1)} s` : `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;

    function callRow(call) {
        const row = document.createElement("tr");
        row.dataset.call = call.id;
        row.append(cell(age(call.seconds)), cell(call.model), cell(call.key), cell(call.account || "choosing"),
            cell(call.tokens.toLocaleString("en"), "b-number"), cell(call.leaving ? "left, draining" : call.stream ? "streaming" : "waiting"));
        return row;
    }

    function endedRow(call) {
        const row = document.createElement("tr");
        row.dataset.call = call.id;
        const link = document.createElement("a");
        link.className = "b-link";
        link.href = page.dataset.recordUrl.replace("00000000-0000-0000-0000-000000000000", call.id);
        link.textContent = call.id.slice(-12);
        const first = document.createElement("td");
        first.append(link);
        const badge = document.createElement("span");
        badge.className = `b-badge ${call.status === "ok" ? "b-success" : call.status === "client_disconnected" ? "b-info" : "b-danger"}`;
        badge.textContent = call.status.replaceAll("_", " ");
        const second = document.createElement("td");
        second.append(badge);
        row.append(first, second, cell(call.model), cell(call.key), cell(call.account), cell(call.tokens.toLocaleString("en"), "b-number"),
            cell(usd(call.cost_nanos), "b-number"), cell((call.duration_ms / 1000).toFixed(2), "b-number"));
        return row;
    }

    function show(picture) {
        heard = Date.now();
        history.push(picture);
        if (history.length > WINDOW) history.shift();
        const seconds = history.length / 4;
        const sum = (name) => history.reduce((total, item) => total + item[name], 0);
        text("in_flight", short(picture.in_flight));
        text("relays", picture.relays);
        text("calls", short(sum("ended_calls") / seconds));
        text("tokens", short(sum("ended_tokens") / seconds));
        text("cost", usd(sum("ended_cost_nanos") / seconds * 60));
        const calls = document.getElementById("live-calls");
        calls.tBodies[0].replaceChildren(...picture.calls.map(callRow));
        calls.hidden = !picture.calls.length;
        document.getElementById("live-none").hidden = picture.calls.length > 0;
        const ended = document.getElementById("live-ended");
        ended.tBodies[0].prepend(...picture.ended.reverse().map(endedRow));
        while (ended.rows.length > KEPT + 1) ended.deleteRow(-1);
        ended.hidden = ended.rows.length < 2;
        document.getElementById("live-none-ended").hidden = ended.rows.length > 1;
    }

    function say(words) {
        stale.textContent = words;
        stale.hidden = !words;
    }

    function connect() {
        const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws/live/`);
        socket.onopen = () => { wait = 500; };
        socket.onmessage = (message) => show(JSON.parse(message.data));
        socket.onclose = (event) => {
            refused = event.code === 4403;
            if (refused) return;
            setTimeout(connect, wait);
            wait = Math.min(wait * 2, 10000);
        };
    }

    setInterval(() => {
        const silent = Date.now() - heard;
        if (refused) say("You may not watch live calls. Ask an admin for the right to view usage records.");
        else if (!heard && silent > STALE_MS) say("Connecting to the relay ...");
        else if (silent > STALE_MS) say(`What you see is ${Math.round(silent / 1000)} s old. Reconnecting ...`);
        else say("");
    }, 500);
    connect();
})();
