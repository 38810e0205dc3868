"""Starts Baton's processes and asks them, for the programs in this folder. Uses the standard library only."""

import contextlib
import http.client
import json
import os
import random
import re
import subprocess
import threading
import time


class Failed(Exception):
    """A process or an answer is wrong."""


# The log lines that the suite looks for, by their constant messages. Every other state is asked over HTTP.
LISTENING = "listening"
LANE_TOO_SLOW = "cuda_ipc"


class Process:
    """A `runtime` process and its log."""

    def __init__(self, command, gpu, **environment):
        environment = dict(os.environ, CUDA_VISIBLE_DEVICES=str(gpu), **environment)
        self.name, self.lines = command[command.index("--role") + 1], []
        self.child = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        self.changed = threading.Condition()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.child.stderr:
            with self.changed:
                self.lines.append(line.rstrip())
                self.changed.notify_all()

    def until(self, what, found, seconds=90):
        """Calls `found` until its result is true, and returns the result."""
        end = time.monotonic() + seconds
        while not (result := found()):
            if time.monotonic() > end or self.child.poll() is not None:
                raise Failed(f"{self.name}: not {what}; its log ends with:\n" + "\n".join(self.lines[-25:]))
            with self.changed:
                self.changed.wait(0.02)
        return result

    def line(self, *words):
        """The first log line that contains each of `words`."""
        return self.until(f"logged {words}", lambda: next((line for line in list(self.lines) if all(word in line for word in words)), None))

    def address(self, key):
        """The address that the port configured under `key` is bound to."""
        return re.search(r"(?:url=http://|address=)(\S+)", self.line(LISTENING, f'key="{key}"')).group(1)

    def port(self, key="frontend.port"):
        return int(self.address(key).rsplit(":", 1)[1])

    def health(self, key):
        """The answer to `/health`; empty while the port does not answer with status 200."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port(key), timeout=5)
        try:
            connection.request("GET", "/health")
            reply = connection.getresponse()
            return json.loads(reply.read()) if reply.status == 200 else {}
        except (OSError, http.client.HTTPException):
            return {}
        finally:
            connection.close()

    def wait_healthy(self, key="frontend.port"):
        self.until("healthy", lambda: self.health(key))

    def wait_peers(self, count=1):
        """Waits until pages can travel between the process and `count` peers."""
        self.until(f"connected to {count} peers", lambda: self.health("http.port").get("peers") == count)

    def stop(self):
        self.child.terminate()
        try:
            self.child.wait(20)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()

    def kill(self):
        self.child.kill()
        self.child.wait()


class Fleet:
    """Starts processes with common settings."""

    def __init__(self, runtime, libucp, model, *settings):
        settings = ["http.port=0", f"transport.ucx_library={libucp}", "engine.prefix_cache=false", *settings]
        if not str(model).endswith(".gguf"):
            # Random weights.
            settings.append("engine.load_format=dummy")
        self.runtime, self.model, self.settings, self.processes = str(runtime), str(model), settings, []

    def start(self, role, gpu, *settings, **environment):
        # A later setting overrides an earlier one.
        pairs = [part for setting in [*self.settings, *settings] for part in ("--set", setting)]
        self.processes.append(Process([self.runtime, "--role", role, "--model", self.model, *pairs], gpu, **environment))
        return self.processes[-1]

    def stop(self):
        """Ends the processes that still run."""
        for process in self.processes:
            if process.child.poll() is None:
                process.stop()
        self.processes.clear()

    def local(self, gpu, *settings, device="cuda"):
        process = self.start("local", gpu, "frontend.port=0", f"engine.device={device}", *settings)
        process.wait_healthy()
        return process

    def receiver(self, link="127.0.0.1:0", **environment):
        """A receiver on the first GPU, and the address of its link port."""
        port = f"link.port={link.rsplit(':', 1)[1]}"
        process = self.start("receiver", 0, "frontend.port=0", "engine.device=cuda", port, **environment)
        process.wait_healthy()
        return process, process.address("link.port")

    def sender(self, link, **environment):
        """A sender on the second GPU."""
        return self.start("sender", 1, "engine.device=cuda", f"link.peers={link}", **environment)

    def pair(self):
        receiver, link = self.receiver()
        sender = self.sender(link)
        receiver.wait_peers()
        sender.wait_peers()
        return receiver, sender, link


KEPT = threading.local()


@contextlib.contextmanager
def posted(port, path, body):
    """The reply to a POST of JSON. When the reply has been read, the connection is kept for the next request of this thread, as vLLM's client does."""
    connections = KEPT.__dict__.setdefault("connections", {})

    def post(connection):
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        return connection, connection.getresponse()

    kept = connections.pop(port, None)
    fresh = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection, reply = post(kept or fresh)
    except ConnectionError:
        # The server closes connections that are idle for a long time.
        if kept is None:
            raise
        connection, reply = post(fresh)
    yield reply
    reply.read()
    connections[port] = connection


class Answer:
    """A streamed completion: its tokens, and their times in milliseconds from the request."""

    def __init__(self):
        self.ids, self.times, self.timings = [], [], {}
        # Texts of the tokens, and for each position the most probable tokens with their log probabilities, if requested.
        self.texts, self.tops = [], []

    @property
    def ttft(self):
        return self.times[0]

    @property
    def gaps(self):
        return [after - before for before, after in zip(self.times, self.times[1:])]


def ask(port, prompt, tokens, **more):
    """Asks for `tokens` tokens, greedy unless `more` has other settings. `prompt` is a list of token ids."""
    body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
    body |= {"return_token_ids": True, "return_timings": True, "stream_options": {"include_usage": True}, **more}
    answer, began = Answer(), time.perf_counter()
    with posted(port, "/v1/completions", body) as reply:
        if reply.status != 200:
            raise Failed(reply.read().decode())
        for line in reply:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            event = json.loads(line[6:])
            if "choices" not in event:
                raise Failed(f"the answer ended early: {event}")
            answer.timings = event.get("timings") or answer.timings
            for choice in event["choices"]:
                if choice.get("token_ids"):
                    answer.ids += choice["token_ids"]
                    answer.times.append((time.perf_counter() - began) * 1e3)
                if choice.get("logprobs"):
                    answer.texts += choice["logprobs"]["tokens"]
                    answer.tops += choice["logprobs"]["top_logprobs"]
    if len(answer.ids) != tokens:
        raise Failed(f"got {len(answer.ids)} of {tokens} tokens")
    return answer


def tokenize(port, text):
    with posted(port, "/tokenize", {"prompt": text}) as reply:
        return json.loads(reply.read())["tokens"]


class Together:
    """Answers to all prompts, at most `most` at a time; None for a failed one."""

    def __init__(self, port, prompts, tokens, most=None, **more):
        self.answers = [None] * len(prompts)
        self.left = iter(range(len(prompts)))
        self.lock = threading.Lock()

        def work():
            while True:
                with self.lock:
                    place = next(self.left, None)
                if place is None:
                    return
                try:
                    self.answers[place] = ask(port, prompts[place], tokens, **more)
                except (OSError, http.client.HTTPException, Failed):
                    pass

        self.threads = [threading.Thread(target=work) for _ in range(most or len(prompts))]
        for thread in self.threads:
            thread.start()

    def wait(self):
        for thread in self.threads:
            thread.join()
        return self.answers


def random_prompt(seed, length):
    """A prompt of token ids that every model of the suite has."""
    return random.Random(seed).choices(range(1000, 32000), k=length)


def gpu_memory(gpu):
    """MiB in use on a GPU."""
    query = ["nvidia-smi", f"--id={gpu}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.run(query, capture_output=True, text=True).stdout)
