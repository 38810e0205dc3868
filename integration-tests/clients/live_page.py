"""Looks at the live page with a browser: live_page.py RUNTIME [--axe FILE] [--screens FOLDER]

Starts processes of RUNTIME and opens their pages in Debian's chromium: before the first request, under load, with a lost sender, with an API key, with a
hostile model name, without a chat template, after a lost connection, of a proxy, and through a name that the server does not accept. Checks what the pages show, that
nothing scrolls sideways from 390 to 1440 px, that the keyboard is enough, and that 1,000 snapshots take no more memory than 200. --axe checks accessibility
with the script of npm's axe-core; --screens writes pictures. Needs PyPI's playwright. Prints `the live page is right` at the end.
"""

import argparse
import atexit
import http.server
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request

CHROMIUM = "/usr/bin/chromium"
WITHIN_MS = 60_000
HOSTILE = "<img src=x onerror=alert(1)>"
MACHINES = [(1440, "light"), (1440, "dark"), (390, "light"), (390, "dark")]


class Process:
    """A process of the program. `ports` has the addresses of its ports by their keys."""

    def __init__(self, program, role, *settings, flags=()):
        keys = ["http.port=0", "frontend.port=0", "link.port=0", "log.format=json", "engine.kv_bytes=128MiB", *settings]
        arguments = [part for key in keys for part in ("--set", key)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("BATON_", "UCX_"))}
        self.child = subprocess.Popen([program, "--role", role, *flags, *arguments], stderr=subprocess.PIPE, text=True, env=environment)
        atexit.register(self.child.kill)
        self.ports, self.log = {}, []
        for line in self.child.stderr:
            self.log.append(line)
            event = json.loads(line) if line.startswith("{") else {}
            fields = {**event, **event.get("fields", {})}
            if "key" in fields:
                self.ports[fields["key"]] = fields.get("url") or fields.get("address")
            if str(fields.get("message", "")).startswith("ready in"):
                break
        else:
            raise SystemExit(f"the {role} did not start:\n{''.join(self.log)}")
        threading.Thread(target=lambda: self.log.extend(self.child.stderr), daemon=True).start()

    def end(self, how=signal.SIGKILL):
        self.child.send_signal(how)
        self.child.wait()


def ask(url, path, body=None, **headers):
    """Status and text of an answer."""
    data = body and json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"content-type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


class Load:
    """Clients that ask until they are told to stop."""

    def __init__(self, url, clients=2):
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self.run, args=(url, n), daemon=True) for n in range(clients)]
        for thread in self.threads:
            thread.start()

    def run(self, url, client):
        turn = 0
        while not self.over.is_set():
            turn += 1
            words = " ".join(f"{client}.{turn}.{n}" for n in range(10 + 20 * (turn % 3)))
            body = {"messages": [{"role": "user", "content": f"Which of these is the greatest? {words}"}], "max_tokens": 8}
            try:
                ask(url, "/v1/chat/completions", body)
            except OSError:
                return

    def stop(self):
        self.over.set()
        for thread in self.threads:
            thread.join()


class Replay(http.server.BaseHTTPRequestHandler):
    """A server that has the page of a real one, and sends snapshots of its own. `server.state` says what it does."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, headers, body=None):
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header(*(("transfer-encoding", "chunked") if body is None else ("content-length", str(len(body)))))
        self.end_headers()
        if body is not None:
            self.wfile.write(body)

    def chunk(self, text):
        data = text.encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def do_GET(self):
        state = self.server.state
        if self.path == "/":
            return self.answer(state["headers"], state["html"])
        self.answer({"content-type": "application/x-ndjson"})
        try:
            while not state.get("down"):
                with state["condition"]:
                    state["condition"].wait_for(lambda: state["sent"] < state["until"] or state.get("down"), 1)
                    if state["sent"] < state["until"]:
                        state["sent"] += 1
                        self.chunk(json.dumps(replayed(state)) + "\n")
        except OSError:
            pass
        self.close_connection = True

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.state["asked"] = (self.path, body)
        self.answer({"content-type": "text/event-stream"})
        for text in ["one <b>", "two</b>"]:
            event = {"choices": [{"index": 0, "text": text, "finish_reason": None}]}
            self.chunk(f"data: {json.dumps(event)}\n\n")
        self.chunk("data: [DONE]\n\n")
        self.chunk("")


def replayed(state):
    """The next snapshot: a second later, with four more requests."""
    n, template = state["sent"], state["snapshot"]
    at = lambda seconds: time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(1.7e9 + seconds))
    ended = 4 * n
    requests = [{**state["request"], "id": f"r-{ended - back}", "arrived": at(n - 1), "first_token_ms": 40 + (n * 7 + back) % 60} for back in range(4)]
    totals = {**template["totals"], "finished": ended, "sampled_tokens": 30 * ended, "prompt_tokens_computed": 90 * ended}
    return {**template, "uptime_s": float(n), "time": at(n), "ended": ended, "requests": requests, "totals": totals, "chat": False}


class Look:
    """The browser and the checks that every page passes."""

    def __init__(self, browser, axe, screens):
        self.browser, self.axe, self.screens = browser, axe, screens

    def open(self, url, width=1440, scheme="light"):
        context = self.browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=False)
        page = context.new_page()
        page.set_default_timeout(WITHIN_MS)
        page.faults = []
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on("dialog", lambda dialog: page.faults.append(f"dialog: {dialog.message}"))
        page.on("console", lambda line: page.faults.append(line.text) if "Content Security Policy" in line.text else None)
        page.requested = []
        page.on("request", lambda request: page.requested.append(request.url))
        page.goto(url + "/")
        return page

    def close(self, page, url):
        others = [found for found in page.requested if not found.startswith((url, "data:"))]
        assert not page.faults and not others, (page.faults, others)
        page.context.close()

    def fits(self, page):
        for width in (390, 480, 768, 1024, 1440):
            page.set_viewport_size({"width": width, "height": 900})
            found = page.evaluate("document.documentElement.scrollWidth")
            assert found <= width, f"{found} px in a window of {width} px"

    def picture(self, page, name):
        if self.screens:
            page.evaluate("() => scrollTo(0, 0)")
            page.screenshot(path=self.screens / f"{name}.png", full_page=False)

    def accessible(self, url, width, scheme, ready):
        """axe-core needs a context without the policy of the page."""
        if not self.axe:
            return
        context = self.browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True)
        page = context.new_page()
        page.goto(url + "/")
        ready(page)
        page.add_script_tag(path=self.axe)
        found = page.evaluate("axe.run()")["violations"]
        serious = [(each["id"], [node["html"] for node in each["nodes"]][:3]) for each in found if each["impact"] in ("serious", "critical")]
        assert not serious, serious
        context.close()


def shows(page, selector, pattern):
    """Waits until the text of an element fits a pattern."""
    page.wait_for_function(
        "([selector, pattern]) => new RegExp(pattern).test(document.querySelector(selector)?.innerText ?? '')", arg=[selector, pattern]
    )


def under_load(page):
    shows(page, "#tokens-rate", "[1-9]")
    shows(page, "#ttft-median", "ms|s")
    page.wait_for_function("() => document.querySelectorAll('#waterfall tr:not([hidden])').length >= 8")


def pair(program, look):
    receiver = Process(program, "receiver")
    url = receiver.ports["frontend.port"]
    page = look.open(url)
    shows(page, "#state", "ok")
    assert page.is_visible("#no-peers") and page.is_visible("#no-requests")
    look.fits(page)
    look.picture(page, "empty-1440-light")
    look.accessible(url, 1440, "light", lambda page: shows(page, "#state", "ok"))
    sender = Process(program, "sender", f"link.peers={receiver.ports['link.port']}")
    shows(page, "#peers", "✓ ready, 1 session[\\s\\S]*prefills for this process[\\s\\S]*nothing")
    load = Load(url)
    under_load(page)
    shows(page, "#peers", "prefills for this process[\\s\\S]*received [1-9]")
    shows(page, "#waterfall", "prefilled by a peer[\\s\\S]*exposed hand-over")
    look.fits(page)
    others = [(look.open(url, width, scheme), f"load-{width}-{scheme}") for width, scheme in MACHINES]
    for other, name in others:
        under_load(other)
        # Lines need some seconds of history.
        shows(other, "#tokens-alt", "of the last (1[5-9]|[2-9]\\d|\\d+ min)")
        look.picture(other, name)
        look.close(other, url)
    for width, scheme in MACHINES:
        look.accessible(url, width, scheme, under_load)
    of_sender = look.open(sender.ports["http.port"])
    shows(of_sender, "#role", "sender")
    shows(of_sender, "#peers", "decodes what is prefilled here[\\s\\S]*sent [1-9]")
    shows(of_sender, "#tokens-note", "[1-9].* prompt tokens/s")
    look.close(of_sender, sender.ports["http.port"])
    load.stop()
    chats(page)
    load = Load(url)
    sender.end()
    shows(page, "#peers", "✕ not connected")
    shows(page, "#waterfall", "prefilled here")
    look.picture(page, "lost-sender-1440-light")
    load.stop()
    receiver.end(signal.SIGTERM)
    shows(page, "#state", "no connection")
    shows(page, "#trouble-text", "next attempt")
    look.close(page, url)
    print("a pair: empty, under load, the sender's page, chat, lost sender, lost receiver")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def fleet(program, look):
    receiver = Process(program, "receiver")
    sender = Process(program, "sender", f"link.peers={receiver.ports['link.port']}")
    late = free_port()
    ports = [process.ports["http.port"].removeprefix("http://") for process in (receiver, sender)]
    proxy = Process(program, "proxy", f"fleet.nodes={','.join([*ports, f'127.0.0.1:{late}'])}")
    url = proxy.ports["frontend.port"]
    page = look.open(url)
    shows(page, "#role", "proxy")
    for row in ("receiver,.*\\s+✓ ready", "sender,.*\\s+✓ prefills only", "✕ left out\\s+.*refused"):
        shows(page, "#nodes", row)
    odd = Process(program, "node", f"http.port={late}", "engine.page_tokens=32")
    shows(page, "#nodes", "✕ left out\\s+.*set engine.page_tokens")
    shows(page, "#nodes-ready", "^1 of 2$")
    assert not any(page.is_visible(f"#{part}") for part in ("tile-tokens", "tile-ring", "peers-section", "tokens-figure"))
    load = Load(url)
    shows(page, "#ttft-median", "ms|s")
    shows(page, "#waterfall", "answered, at 127[\\s\\S]*prefiller 127[\\s\\S]*node, until its first byte [1-9]")
    look.fits(page)
    for width, scheme in MACHINES:
        other = look.open(url, width, scheme)
        shows(other, "#ttft-alt", "Last five minutes: \\d\\d")
        look.picture(other, f"fleet-{width}-{scheme}")
        look.close(other, url)
        look.accessible(url, width, scheme, lambda page: shows(page, "#waterfall", "answered"))
    load.stop()
    page.fill("#max-tokens", "8")
    page.fill("#prompt", "Say yes.")
    page.press("#prompt", "Enter")
    shows(page, "#chat-status", "complete|maximum number")
    sender.end()
    shows(page, "#nodes", "sender,.*\\s+✕ left out")
    receiver.end()
    shows(page, "#state", "down")
    shows(page, "#nodes-ready", "^0 of")
    look.close(page, url)
    for process in (proxy, odd):
        process.end()
    print("a proxy: its nodes, one that is left out, a chat, a lost sender, and no node")


def chats(page):
    """Asks and stops with the keyboard alone."""
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    reached = []
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
        if reached[-1] == "prompt":
            break
    assert reached[0] == "skip" and reached[-1] == "prompt", reached
    page.evaluate("() => { document.getElementById('max-tokens').value = 32; }")
    page.keyboard.type("Is <b>this</b> bold?")
    page.keyboard.press("Enter")
    shows(page, "#chat-status", "complete|maximum number")
    shows(page, "#chat-log", "<b>this</b>[\\s\\S]*TTFT .* ms.*tokens/s[\\s\\S]*Process \\d+ prefilled and handed over")
    page.fill("#max-tokens", "400")
    page.fill("#prompt", "Count from one to one thousand.")
    page.press("#prompt", "Enter")
    page.wait_for_selector("#stop:enabled")
    page.focus("#stop")
    page.keyboard.press("Enter")
    shows(page, "#chat-status", "Stopped")


def key_and_name(program, look):
    local = Process(program, "local", "request.api_key=right", f"served_model_name={HOSTILE}")
    url = local.ports["frontend.port"]
    assert ask(url, "/debug/live")[0] == 401
    page = look.open(url, 390, "dark")
    page.wait_for_selector("#key-section:not([hidden])")
    look.picture(page, "key-390-dark")
    for key, expect in [("wrong", "refused this key"), ("right", "")]:
        page.fill("#key", key)
        page.press("#key", "Enter")
        if expect:
            shows(page, "#key-text", expect)
    shows(page, "#state", "ok")
    shows(page, "#model", re.escape(HOSTILE))
    page.wait_for_selector("#key-section", state="hidden")
    assert page.evaluate("sessionStorage.length") == 1 and page.evaluate("localStorage.length") == 0
    assert not [found for found in page.requested if "right" in found], "the key is in a URL"
    assert page.evaluate("document.images.length") == 0
    page.fill("#prompt", HOSTILE)
    page.press("#prompt", "Enter")
    shows(page, "#chat-status", "complete|maximum number")
    look.fits(page)
    look.picture(page, "hostile-name-1440-dark")
    page.reload()
    shows(page, "#state", "ok")
    look.close(page, url)
    local.end()
    print("a key and a hostile model name")


def refused_name_and_off(program, look):
    local = Process(program, "local")
    port = local.ports["frontend.port"].rsplit(":", 1)[1]
    page = look.open(f"http://rebound.example:{port}")
    shows(page, "#trouble-text", "only programs on the same machine")
    look.close(page, "http://rebound.example")
    local.end()
    off = Process(program, "local", "frontend.page=false")
    for path in ("/", "/debug/live"):
        assert ask(off.ports["frontend.port"], path)[0] == 404
    off.end()
    print("a name that the server does not accept, and a server without the page")


def replays(program, look):
    """Memory, a lost connection and a model without a chat template, with snapshots that come quickly."""
    local = Process(program, "local")
    url = local.ports["frontend.port"]
    ask(url, "/v1/completions", {"prompt": "a b c", "max_tokens": 2})
    with urllib.request.urlopen(url + "/") as answer:
        headers, html = {name.lower(): answer.headers[name] for name in ("content-type", "content-security-policy")}, answer.read()
    with urllib.request.urlopen(url + "/debug/live") as answer:
        snapshot = json.loads(answer.readline())
    local.end()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Replay)
    state = {"headers": headers, "html": html, "snapshot": snapshot, "request": snapshot["requests"][0]}
    server.state = state | {"condition": threading.Condition(), "sent": 0, "until": 200}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    page = look.open(url)
    devtools = page.context.new_cdp_session(page)

    def measured(updates):
        with server.state["condition"]:
            server.state["until"] = updates
            server.state["condition"].notify_all()
        shows(page, "#requests-note", f"^{4 * updates:,} finished")
        used = []
        for _ in range(5):
            # What has just been read is sometimes free only at the next collection.
            devtools.send("HeapProfiler.collectGarbage")
            used.append(devtools.send("Runtime.getHeapUsage")["usedSize"])
        return min(used), devtools.send("Memory.getDOMCounters")["nodes"]

    early, late = measured(200), measured(1000)
    print(f"heap at update 200: {early[0]} bytes, at 1,000: {late[0]}; nodes {early[1]} and {late[1]}")
    assert late[0] <= 1.05 * early[0] and late[1] <= early[1], (early, late)
    look.fits(page)
    assert page.is_visible("#chat-note")
    page.fill("#prompt", "continue")
    page.press("#prompt", "Enter")
    shows(page, "#chat-log", "one <b>two</b>")
    path, body = server.state["asked"]
    assert (path, body["prompt"], body["stream"]) == ("/v1/completions", "continue", True), (path, body)
    server.state["down"] = True
    shows(page, "#state", "no connection")
    shows(page, "#trouble-text", "(ended the stream|broke off|cannot be reached).*figures are those of")
    with server.state["condition"]:
        server.state["down"] = False
        # Snapshots without an end would keep a slow page busy.
        server.state["until"] += 20
    page.click("#again")
    shows(page, "#state", "ok")
    page.wait_for_selector("#trouble", state="hidden")
    look.close(page, url)
    server.state["down"] = True
    server.shutdown()
    print("bounded memory, completions without a chat template, and a lost connection that comes back")


def main():
    options = argparse.ArgumentParser()
    options.add_argument("runtime")
    options.add_argument("--axe", type=pathlib.Path)
    options.add_argument("--screens", type=pathlib.Path)
    options = options.parse_args()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return print("skipped: PyPI's playwright is not installed")
    if not pathlib.Path(CHROMIUM).exists():
        return print(f"skipped: {CHROMIUM} does not exist; install Debian's chromium")
    with sync_playwright() as playwright:
        rules = "--host-resolver-rules=MAP rebound.example 127.0.0.1"
        # Compiled code counts as heap, and more of it is compiled as the page runs. The memory of the page is measured without a compiler.
        interpreted = "--js-flags=--no-opt --no-maglev --no-sparkplug"
        for flags, parts in [([interpreted], [replays]), ([rules], [key_and_name, refused_name_and_off, pair, fleet])]:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *flags])
            for part in parts:
                part(options.runtime, Look(browser, options.axe, options.screens))
            browser.close()
    print("the live page is right")


if __name__ == "__main__":
    main()
