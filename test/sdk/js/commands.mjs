import assert from 'node:assert/strict'
import { existsSync, readFileSync } from 'node:fs'
import { test } from 'node:test'
import { CommandExitError, InvalidArgumentError, TimeoutError } from 'e2b'
import { connect, tempDir, until, user } from './sandbox.mjs'

const { commands } = connect()

test('commands: run', async () => {
  const out = await commands.run('echo out; echo err >&2')
  assert.deepEqual({ ...out }, { exitCode: 0, error: undefined, stdout: 'out\n', stderr: 'err\n' })
})

test('commands: run with an exit code', async () => {
  await assert.rejects(commands.run('echo partly; exit 7'), (err) => {
    assert(err instanceof CommandExitError)
    assert.equal(err.exitCode, 7)
    assert.equal(err.stdout, 'partly\n')
    assert.equal(err.error, 'exit status 7')
    return true
  })
})

test('commands: callbacks', async () => {
  const lines = []
  await commands.run('for i in 1 2 3; do echo $i; done; echo oops >&2', {
    onStdout: (s) => lines.push(['out', s]),
    onStderr: (s) => lines.push(['err', s]),
  })
  const of = (stream) => lines.filter(([s]) => s === stream).map(([, text]) => text).join('')
  assert.equal(of('out'), '1\n2\n3\n')
  assert.equal(of('err'), 'oops\n')
})

test('commands: cwd, envs and user', async () => {
  const dir = tempDir()
  const out = await commands.run('pwd; echo "$A-$B"; id -un', { cwd: dir, envs: { A: '1', B: 'zwei Wörter' }, user })
  assert.equal(out.stdout, `${dir}\n1-zwei Wörter\n${user}\n`)
})

test('commands: a missing working directory', async () => {
  await assert.rejects(commands.run('true', { cwd: '/no/such/dir' }), InvalidArgumentError)
})

test('commands: large output comes whole', async () => {
  const out = await commands.run('head -c 5000000 /dev/zero | tr "\\0" x')
  assert.equal(out.stdout.length, 5_000_000)
})

test('commands: characters that are split between chunks', async () => {
  const out = await commands.run('for i in $(seq 20000); do printf "日本語€"; done')
  assert.equal(out.stdout, '日本語€'.repeat(20000))
})

test('commands: background, stdin and the end of input', async () => {
  const handle = await commands.run('while read x; do echo "got $x"; done; echo done', { background: true, stdin: true })
  await handle.sendStdin('one\n')
  await until('the echo', () => handle.stdout === 'got one\n')
  await commands.sendStdin(handle.pid, 'two\n')
  await handle.closeStdin()
  const out = await handle.wait()
  assert.equal(out.stdout, 'got one\ngot two\ndone\n')
})

test('commands: without stdin input is at its end', async () => {
  const out = await commands.run('cat; echo over')
  assert.equal(out.stdout, 'over\n')
})

test('commands: list and kill', async () => {
  const handle = await commands.run('sleep 1000', { background: true, envs: { MARK: 'x' } })
  const found = (await commands.list()).find((p) => p.pid === handle.pid)
  assert.equal(found.cmd, '/bin/bash')
  assert.deepEqual(found.args, ['-l', '-c', 'sleep 1000'])
  assert.equal(found.envs.MARK, 'x')
  assert.equal(await handle.kill(), true)
  await assert.rejects(handle.wait(), (err) => err instanceof CommandExitError && err.error === 'signal: killed')
  assert.equal(await commands.kill(handle.pid), false)
  assert(!(await commands.list()).some((p) => p.pid === handle.pid))
})

test('commands: disconnect and connect again', async () => {
  const handle = await commands.run('read x; echo "got $x"; exit 3', { background: true, stdin: true })
  await handle.disconnect()
  const again = await commands.connect(handle.pid)
  assert.equal(again.pid, handle.pid)
  await again.sendStdin('hello\n')
  await assert.rejects(again.wait(), (err) => err.exitCode === 3 && err.stdout === 'got hello\n')
})

test('commands: timeout', async () => {
  const begin = Date.now()
  await assert.rejects(commands.run('sleep 1000', { timeoutMs: 400 }), TimeoutError)
  assert(Date.now() - begin < 10_000)
})

test('commands: timeout kills the tree', async () => {
  const file = `${tempDir()}/pid`
  const handle = await commands.run(`setsid sh -c 'echo $$ >${file}; exec sleep 4321' & wait`, { timeoutMs: 4000, background: true })
  await until('the descendant', () => existsSync(file) && readFileSync(file, 'utf8').endsWith('\n'))
  await assert.rejects(handle.wait(), TimeoutError)
  const pid = Number(readFileSync(file, 'utf8'))
  await until('its end', () => !existsSync(`/proc/${pid}`))
})

test('commands: no timeout', async () => {
  const out = await commands.run('sleep 0.2; echo lived', { timeoutMs: 0 })
  assert.equal(out.stdout, 'lived\n')
})

test('commands: connect to what does not exist', async () => {
  await assert.rejects(commands.connect(4_000_000), (err) => err.name === 'NotFoundError')
  await assert.rejects(commands.sendStdin(4_000_000, 'x'), (err) => err.name === 'NotFoundError')
})

test('commands: an unknown user', async () => {
  await assert.rejects(commands.run('true', { user: 'nosuchuser' }), (err) => err.name === 'AuthenticationError')
})

test('commands: many at once', async () => {
  const outs = await Promise.all(Array.from({ length: 8 }, (_, i) => commands.run(`echo ${i}`)))
  assert.deepEqual(outs.map((o) => o.stdout), Array.from({ length: 8 }, (_, i) => `${i}\n`))
})
