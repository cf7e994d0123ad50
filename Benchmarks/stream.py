"""The plain copy that others are compared with: one TCP stream, and an fsync at its end.

    stream.py receive ADDRESS PORT FILE     says `ready`, ends after one copy
    stream.py send ADDRESS PORT FILE...     prints the seconds until the receiver has it on its disk
"""
import os
import socket
import sys
import time

MIB = 1 << 20


def receive(address, path):
    with socket.create_server(address) as server:
        print("ready", flush=True)
        connection, _ = server.accept()
    buffer = memoryview(bytearray(MIB))
    with connection, open(path, "wb", buffering=0) as file:
        while count := connection.recv_into(buffer):
            file.write(buffer[:count])
        os.fsync(file.fileno())
        connection.sendall(b"k")


def send(address, paths):
    begin = time.monotonic()
    with socket.create_connection(address) as connection:
        for path in paths:
            with open(path, "rb", buffering=0) as file:
                connection.sendfile(file)
        connection.shutdown(socket.SHUT_WR)
        if connection.recv(1) != b"k":
            sys.exit("the receiver ended early")
    print(time.monotonic() - begin)


address = (sys.argv[2], int(sys.argv[3]))
if sys.argv[1] == "receive":
    receive(address, sys.argv[4])
else:
    send(address, sys.argv[4:])
