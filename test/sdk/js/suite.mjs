// All tests, in one process, which prints TAP.
import './commands.mjs'
import './pty.mjs'
import './files.mjs'
import './watch.mjs'
import './git.mjs'
