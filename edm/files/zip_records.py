"""The records of a zip archive: PKWARE's APPNOTE.TXT, sections 4.3.7 to 4.3.16. Numbers are little-endian."""

import struct

LOCAL = struct.Struct("<4s5H3L2H")  # before a member's bytes
CENTRAL = struct.Struct("<4s6H3L5H2L")  # a member's entry in the directory
END64, LOCATOR64 = struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")  # for large archives
END = struct.Struct("<4s4H2LH")
