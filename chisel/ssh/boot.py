"""Hold the two short programs that start the node program on a droplet, and the command lines that run them.

`START` lies beside the program in `~/.chisel/node/<sha256>/` and runs it, so that the line which a session is opened
with stays short; where there is none, or a damaged one, the line or `START` answers `MISSING` and ends: a command costs
no extra round trip to find out. `INSTALL` takes the archive from standard input, checks its hash, unpacks it and goes
on with the role on the same channel. The program is unpacked, not run from the zip, so that Python keeps its compiled
modules.

The directory appears by one rename, complete; its marker `complete` holds the sources' total size, which each start
compares, so that a directory damaged by a full disk or a power cut is replaced instead of run. Two that install at
once are safe: one rename wins, the other's copy is dropped. `python3 -I -S` ignores PYTHON* variables and all site
directories: only the standard library is needed, and what others have installed there would cost every start. Both
texts run on Python 3.8 and newer, the lines in every usual login shell.
"""

from __future__ import annotations

import shlex

INTERPRETER = "python3"
MISSING = b"CHISEL-NODE-MISSING\n"
MISSING_STATUS = 97

_RUN = """
sys.path.insert(0,top)
sys.argv=[top,role]
os.environ["CHISEL_NODE_VERSION"]=sha
from chisel_node.__main__ import main
os._exit(main([role]))
"""
"""To take apart what is known of a tree takes 7 ms, and nothing is left to do."""

START_NAME = "chisel_node_start.py"
"""What looks at processes knows the program by its name on their command lines (`chisel.node.activity`)."""
START = (
    """
import os,sys
role=sys.argv[1]
top=os.getcwd()
sha=os.path.basename(top)
try:
 os.utime(top+"/complete")
 with open(top+"/complete") as f:size=int(f.read())
 if size!=sum(e.stat().st_size for e in os.scandir(top+"/chisel_node") if e.name.endswith(".py")):raise ValueError
 os.chdir(os.path.expanduser("~"))
except(OSError,ValueError):
 print("CHISEL-NODE-MISSING",flush=True)
 sys.exit(97)
""".strip()
    + _RUN
)

INSTALL = (
    """
import hashlib,io,os,re,shutil,sys,tempfile,time,zipfile
sha,role,left=sys.argv[1],sys.argv[2],int(sys.argv[3])
data=b""
while left>len(data):
 part=os.read(0,left-len(data))
 if not part:sys.exit("the program was cut in transfer")
 data+=part
if hashlib.sha256(data).hexdigest()!=sha:sys.exit("the program was damaged in transfer")
home=os.path.expanduser("~/.chisel/node")
top=home+"/"+sha
mask=os.umask(0o077)
os.makedirs(home,exist_ok=True)
os.chmod(home,0o700)
new=tempfile.mkdtemp(prefix="new-",dir=home)
def put(name,text):
 with open(new+"/"+name,"wb") as f:
  f.write(text)
  f.flush()
  os.fsync(f.fileno())
try:
 os.mkdir(new+"/chisel_node")
 size=0
 with zipfile.ZipFile(io.BytesIO(data)) as z:
  for name in z.namelist():
   if not re.fullmatch(r"(chisel_node/)?[a-z_][a-z0-9_]*\\.py",name):sys.exit("the program holds a strange name")
   text=z.read(name)
   put(name,text)
   if "/" in name:size+=len(text)
 put("complete",b"%d"%size)
 try:
  os.rename(new,top)
 except OSError:
  try:
   with open(top+"/complete","rb") as f:good=int(f.read())==size==sum(
    e.stat().st_size for e in os.scandir(top+"/chisel_node") if e.name.endswith(".py"))
   start="/chisel_node_start.py"
   with open(top+start,"rb") as f,open(new+start,"rb") as g:good=good and f.read()==g.read()
  except(OSError,ValueError):good=False
  if not good:
   os.rename(top,new+".old")
   os.rename(new,top)
finally:
 shutil.rmtree(new,ignore_errors=True)
 os.umask(mask)
for name in os.listdir(home):
 path=home+"/"+name
 mark=path+"/complete"
 try:
  seen=os.stat(mark if os.path.exists(mark) else path).st_mtime
  if name.endswith(".old") or (name!=sha and seen<time.time()-7*86400):shutil.rmtree(path,ignore_errors=True)
 except OSError:pass
""".strip()
    + _RUN
)


def start_line(sha256: str, role: str) -> str:
    """Return the shell line that starts a role of the installed program."""
    word = MISSING.decode("ascii").strip()
    start = shlex.join([INTERPRETER, "-I", "-S", START_NAME, role])
    return f"cd ~/.chisel/node/{sha256}&&exec {start};echo {word};exit {MISSING_STATUS}"


def install_line(sha256: str, role: str, size: int) -> str:
    """Return the shell line that first takes `size` bytes of program from standard input."""
    return "exec " + shlex.join([INTERPRETER, "-I", "-S", "-c", INSTALL, sha256, role, str(size)])
