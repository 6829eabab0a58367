import assert from 'node:assert/strict'
import { test } from 'node:test'
import { connect, until, user } from './sandbox.mjs'

const { pty, commands } = connect()

function screen() {
  const decoder = new TextDecoder()
  const s = { text: '', onData: (b) => { s.text += decoder.decode(b, { stream: true }) } }
  return s
}
const bytes = (s) => new TextEncoder().encode(s)

test('pty: create, input, resize and exit', async () => {
  const s = screen()
  const handle = await pty.create({ cols: 91, rows: 31, onData: s.onData, timeoutMs: 0, envs: { PS1: '> ', A: 'b' }, cwd: '/usr' })
  await pty.sendInput(handle.pid, bytes('stty size; echo "$TERM $A $(pwd)."\n'))
  await until('the size', () => s.text.includes('31 91') && s.text.includes('xterm-256color b /usr.'))
  await pty.resize(handle.pid, { cols: 111, rows: 41 })
  await pty.sendInput(handle.pid, bytes('stty size\n'))
  await until('the new size', () => s.text.includes('41 111'))
  await pty.sendInput(handle.pid, bytes('exit 5\n'))
  await assert.rejects(handle.wait(), (err) => err.exitCode === 5)
})

test('pty: connect and kill', async () => {
  const handle = await pty.create({ cols: 80, rows: 24, onData: () => {}, user, timeoutMs: 0 })
  await handle.disconnect()
  const s = screen()
  const again = await pty.connect(handle.pid, { onData: s.onData })
  await pty.sendInput(handle.pid, bytes('id -un | tr a-z A-Z\n'))
  await until('the answer', () => s.text.includes(user.toUpperCase()))
  assert((await commands.list()).some((p) => p.pid === handle.pid))
  assert.equal(await pty.kill(handle.pid), true)
  await assert.rejects(again.wait())
  assert.equal(await pty.kill(handle.pid), false)
})
