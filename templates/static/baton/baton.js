// Copy buttons: <button data-copy="#id-of-the-text">. No inline script, so that the page's policy can forbid it.
"use strict";

document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const source = document.querySelector(button.dataset.copy);
    const text = "value" in source ? source.value : source.textContent.trim();
    try {
        await navigator.clipboard.writeText(text);
        button.textContent = "Copied";
    } catch {
        // Without a secure origin the browser has no clipboard for us: select it, so that Ctrl-C does it.
        const range = document.createRange();
        range.selectNodeContents(source);
        getSelection().removeAllRanges();
        getSelection().addRange(range);
        button.textContent = "Press Ctrl-C";
    }
});
