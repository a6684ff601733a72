"""Stands in for `tfx generate --serve`: speaks its protocol, and fails when it is told to."""

import json
import sys
import time


def say(**event):
    print(json.dumps(event), flush=True)


def main():
    if "--broken" in sys.argv:
        print("some narration", file=sys.stderr)
        print("Error: the model folder is damaged", file=sys.stderr)
        sys.exit(4)
    say(event="loading", model="m")
    print("not json", flush=True)
    print("[1]", flush=True)
    say(event="ready")
    for line in sys.stdin:
        request = json.loads(line)
        if "cancel" in request:
            say(event="cancelled", id=request["cancel"])
        elif request["request"].get("sex") == "slow":
            say(event="progress", id=request["id"], done=1, total=10)
            time.sleep(60)
        elif request["request"].get("sex") == "dies":
            sys.exit(3)
        else:
            for done in (1, 2):
                say(event="progress", id=request["id"], done=done, total=2)
            say(event="cells", id=request["id"], cells=request["cells"], seconds=0.1,
                output=request.get("output"), profile={"asked": request})  # fmt: skip


main()
