"""A user at a screen: the menu, the dialog with its preview, a run, undo, and both ways to cancel.

Runs beside GIMP, not in it, with a screen of its own (Xvfb) and a hand (xdotool); leaves what it
saw as ``result.json`` and pictures of the screen in ``shots``.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leftovers import left

FOLDER = Path(os.environ["VS_DEBLUR_TEST"])
INPUTS: dict[str, Any] = json.loads((FOLDER / "inputs.json").read_text())
SHOTS = FOLDER / "shots"
LOG = Path(os.environ["XDG_CACHE_HOME"], "vs-deblur", "gimp.log")
SETTINGS = Path(os.environ["GIMP3_DIRECTORY"], "plug-ins", "vs-deblur", "vs-deblur.json")
PATIENCE = 90.0  # seconds for anything to happen
DIALOG = "^Motion Deblur$"
IMAGE = "imported"
SIZE = (1390, 960)  # of GIMP's window, at the corner of the screen
CANCEL = (1109, 962)  # where its Cancel is while an action runs


def hand(*command: object) -> str:
    done = subprocess.run(
        ["xdotool", *map(str, command)], capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout.strip()


def wait(what: str, condition: Callable[[], Any], patience: float = PATIENCE) -> Any:
    end = time.monotonic() + patience
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.2)
    shot("timeout")
    raise TimeoutError(f"{what}: waited {patience:g} seconds")


def shot(name: str) -> None:
    time.sleep(0.5)
    (SHOTS / f"{name}.png").unlink(missing_ok=True)
    subprocess.run(["scrot", str(SHOTS / f"{name}.png")], timeout=60, check=True)


def window(pattern: str) -> str:
    return (hand("search", "--onlyvisible", "--name", pattern).split() or [""])[-1]


def title() -> str:
    """Of the image's window; it is none for a moment while another one closes."""
    for _ in range(20):
        found = window(IMAGE)
        if found:
            return hand("getwindowname", found)
        time.sleep(0.1)
    return ""


def layers() -> int:
    found = re.search(r"(\d+) layer", title())
    return int(found[1]) if found else 0


def workers() -> int:
    """Processes that compute for the action, or did and were not waited for."""
    return left(os.getpid(), 0.0)


def focus(pattern: str) -> str:
    found: str = wait(f"window {pattern}", lambda: window(pattern))
    hand("windowactivate", "--sync", found)
    time.sleep(0.3)
    return found


def open_dialog(name: str | None = None) -> str:
    focus(IMAGE)
    hand("key", "alt+r")
    time.sleep(0.7)
    hand("key", "h")
    time.sleep(0.7)
    if name:
        shot(name)
    hand("key", "m")
    return focus(DIALOG)


def logged(words: str) -> int:
    return LOG.read_text().count(words) if LOG.exists() else 0


def place(dialog: str) -> tuple[int, int, int, int]:
    """Left, top, width and height of a window."""
    text = hand("getwindowgeometry", "--shell", dialog)
    found = dict(line.split("=") for line in text.splitlines())
    x, y, width, height = (int(found[k]) for k in ("X", "Y", "WIDTH", "HEIGHT"))
    return x, y, width, height


def finished(what: str, is_there: Callable[[], bool]) -> str:
    """Wait for a result and the end of its worker; the title then."""
    wait(what, is_there)
    wait("the end of the worker", lambda: workers() == 0)
    return title()


def undo() -> str:
    """Undo one step, which brings the image back to what was loaded; the title then."""
    focus(IMAGE)
    hand("key", "ctrl+z")
    wait("undo", lambda: not title().startswith("*"))
    return title()


def drag(from_: tuple[int, int], to: tuple[int, int]) -> None:
    hand("mousemove", *from_)
    time.sleep(0.3)
    hand("mousedown", 1)
    for i in range(1, 6):
        hand("mousemove", *(a + (b - a) * i // 5 for a, b in zip(from_, to, strict=True)))
        time.sleep(0.1)
    hand("mouseup", 1)
    time.sleep(0.5)


def use() -> dict[str, Any]:
    found: dict[str, Any] = {}
    SETTINGS.write_text(INPUTS["real"])
    main = focus(IMAGE)
    hand("windowsize", "--sync", main, *SIZE)
    hand("windowmove", main, 0, 0)
    found["title"] = title()

    dialog = open_dialog("menu")
    shot("dialog")
    wait("the first preview", lambda: logged("384x384 pixels") >= 1)
    shot("preview")
    x, y, width, _ = place(dialog)
    middle = (x + width // 2, y + 220)
    drag(middle, (middle[0] - 120, middle[1]))
    shot("line")
    drag((middle[0] + 60, middle[1]), (middle[0] - 40, middle[1] - 30))
    wait("the preview of another place", lambda: logged("384x384 pixels") >= 2)
    shot("moved")
    found["workers_while_open"] = workers()
    focus(DIALOG)
    hand("key", "Return")
    wait("the result", lambda: layers() == 2)
    shot("done")
    found["after"] = title()
    wait("the end of the worker", lambda: workers() == 0)
    focus(IMAGE)
    hand("key", "ctrl+z")
    wait("undo", lambda: layers() == 1)
    shot("undone")
    found["undone"] = title()

    # In place, by the dialog's key; then again by Repeat, which knows what was asked for last.
    open_dialog()
    hand("key", "alt+n")
    hand("key", "Return")
    found["in_place"] = finished("the result in place", lambda: title().startswith("*"))
    undo()
    hand("key", "ctrl+f")
    found["repeated"] = finished("the repeated result", lambda: title().startswith("*"))
    found["undone_again"] = undo()

    shown = logged("384x384 pixels")
    open_dialog()
    wait("the preview", lambda: logged("384x384 pixels") > shown)
    hand("key", "Escape")
    begin = time.monotonic()
    wait("the end of the worker after Cancel", lambda: workers() == 0 and not window(DIALOG))
    found["cancel_dialog"] = {"seconds": time.monotonic() - begin, "title": title()}

    SETTINGS.write_text(INPUTS["slow"])
    focus(IMAGE)
    hand("key", "ctrl+f")
    wait("the slow worker", lambda: workers() == 1)
    time.sleep(1.0)
    shot("running")
    hand("mousemove", *CANCEL)
    hand("click", 1)
    hand("mousemove", 650, 150)  # away from tips
    begin = time.monotonic()
    wait("the end of the slow worker", lambda: workers() == 0)
    seconds = time.monotonic() - begin
    time.sleep(1.0)
    shot("cancelled")
    found["cancel_run"] = {"seconds": seconds, "title": title()}

    SETTINGS.write_text(INPUTS["broken"])
    dialog = open_dialog()
    time.sleep(4)
    shot("broken_preview")
    # A preview that failed is tried anew at the next place.
    SETTINGS.write_text(INPUTS["real"])
    x, y, width, _ = place(dialog)
    shown = logged("384x384 pixels")
    drag((x + width // 2 + 60, y + 220), (x + width // 2 + 20, y + 200))
    wait("the preview after a failure", lambda: logged("384x384 pixels") > shown)
    shot("mended_preview")
    found["mended"] = workers()
    focus(DIALOG)
    hand("key", "Escape")
    wait("the end of the worker after Cancel", lambda: workers() == 0 and not window(DIALOG))
    SETTINGS.write_text(INPUTS["broken"])
    dialog = open_dialog()
    time.sleep(4)
    focus(DIALOG)
    hand("key", "Return")
    time.sleep(4)
    shot("broken")
    found["broken"] = {"title": title(), "dialog": bool(window(DIALOG))}
    return found


def main() -> None:
    SHOTS.mkdir(exist_ok=True)
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    # A display of any number that is free: others may have theirs.
    told, tell = os.pipe()
    screen = ["Xvfb", "-displayfd", str(tell), "-screen", "0", "1400x1000x24", "-nolisten", "tcp"]
    processes = [subprocess.Popen(screen, pass_fds=(tell,), **quiet)]
    os.close(tell)
    os.environ["DISPLAY"] = ":" + os.read(told, 16).decode().strip()
    found: dict[str, Any]
    try:
        wait("the screen", lambda: hand("getdisplaygeometry"))
        for _ in range(5):  # it dies at once now and then
            processes.append(subprocess.Popen(["openbox"], **quiet))
            time.sleep(1.5)
            if processes[-1].poll() is None and hand("get_num_desktops"):
                break
        else:
            raise RuntimeError("no window manager can be started")
        with (FOLDER / "gimp.log").open("wb") as log:
            gimp = [INPUTS["gimp"], "--no-splash", "--no-data", INPUTS["picture"]]
            processes.append(subprocess.Popen(gimp, stdout=log, stderr=log))
        wait("GIMP", lambda: "layer" in title())
        time.sleep(3)
        found = use()
    except BaseException:
        found = {"traceback": traceback.format_exc() + (FOLDER / "gimp.log").read_text()}
    for process in reversed(processes):
        process.send_signal(signal.SIGKILL)
    (FOLDER / "result.json").write_text(json.dumps(found, indent=1))


main()
