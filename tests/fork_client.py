"""``python -m …`` by way of :class:`tests.forks.Door`, for those who start it by a path of their own.

It asks for the program, passes signals on, and ends as the program does. When it is killed, that is too.
"""

import json
import os
import signal
import socket
import sys

door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
door.connect(sys.argv[1])
order = {"words": sys.argv[3:], "folder": os.getcwd(), "environment": dict(os.environ)}
socket.send_fds(door, [json.dumps(order).encode()], [0, 1, 2])
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: door.send(str(number).encode()))
code = int(door.recv(64) or "1")
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
