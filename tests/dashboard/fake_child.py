"""A stand-in for `tfx generate --serve`: it speaks the protocol, and fails on request."""

import json
import sys
import time


def write(**event):
    print(json.dumps(event), flush=True)


def main():
    if "--broken" in sys.argv:
        print("some narration", file=sys.stderr)
        print("Error: the model folder is damaged", file=sys.stderr)
        sys.exit(4)
    write(event="loading", model="m")
    print("not json", flush=True)
    print("[1]", flush=True)
    write(event="ready")
    for line in sys.stdin:
        request = json.loads(line)
        if "cancel" in request:
            write(event="cancelled", id=request["cancel"])
        elif request["request"].get("sex") == "slow":
            write(event="progress", id=request["id"], done=1, total=10)
            time.sleep(60)
        elif request["request"].get("sex") == "dies":
            sys.exit(3)
        else:
            for done in (1, 2):
                write(event="progress", id=request["id"], done=done, total=2)
            write(event="cells", id=request["id"], cells=request["cells"], seconds=0.1,
                output=request.get("output"), profile={"received": request})  # fmt: skip


main()
