import assert from 'node:assert/strict'
import * as fs from 'node:fs'
import { test } from 'node:test'
import { FilesystemEventType as T } from 'e2b'
import { connect, tempDir, until } from './sandbox.mjs'

const { files } = connect()

async function watch(dir, opts) {
  const w = { events: [], exits: [] }
  w.handle = await files.watchDir(dir, (e) => { w.events.push(e) }, { onExit: (err) => { w.exits.push(err) }, ...opts })
  w.has = (type, name) => w.events.some((e) => e.type === type && e.name === name)
  return w
}

test('watch: every kind of event', async () => {
  const dir = tempDir()
  const w = await watch(dir)
  fs.writeFileSync(`${dir}/f`, 'x')
  fs.chmodSync(`${dir}/f`, 0o600)
  fs.renameSync(`${dir}/f`, `${dir}/g`)
  fs.rmSync(`${dir}/g`)
  await until('the removal', () => w.has(T.REMOVE, 'g'))
  assert.deepEqual(w.events.map((e) => [e.type, e.name]), [
    [T.CREATE, 'f'], [T.WRITE, 'f'], [T.CHMOD, 'f'], [T.RENAME, 'f'], [T.CREATE, 'g'], [T.REMOVE, 'g'],
  ])
  await w.handle.stop()
})

test('watch: what the SDK itself writes', async () => {
  const dir = tempDir()
  const w = await watch(dir)
  await files.write(`${dir}/f`, 'small')
  await until('the write', () => w.has(T.WRITE, 'f'))
  assert.deepEqual(w.events.map((e) => e.type), [T.CREATE, T.CHMOD, T.WRITE])
  await w.handle.stop()
})

test('watch: recursive', async () => {
  const dir = tempDir()
  const w = await watch(dir, { recursive: true })
  fs.mkdirSync(`${dir}/a/b/c`, { recursive: true })
  fs.writeFileSync(`${dir}/a/b/c/f`, '')
  await until('the deepest', () => w.has(T.CREATE, 'a/b/c/f'))
  for (const name of ['a', 'a/b', 'a/b/c']) assert(w.has(T.CREATE, name), name)
  await w.handle.stop()
})

test('watch: without recursive only the top', async () => {
  const dir = tempDir()
  fs.mkdirSync(`${dir}/sub`)
  const w = await watch(dir)
  fs.writeFileSync(`${dir}/sub/f`, '')
  fs.writeFileSync(`${dir}/top`, '')
  await until('the top', () => w.has(T.CREATE, 'top'))
  assert(!w.events.some((e) => e.name.includes('/')))
  await w.handle.stop()
})

test('watch: entries', async () => {
  const dir = tempDir()
  fs.writeFileSync(`${dir}/f`, '12345')
  const w = await watch(dir, { includeEntry: true })
  fs.chmodSync(`${dir}/f`, 0o600)
  await until('the change', () => w.has(T.CHMOD, 'f'))
  const { entry } = w.events[0]
  assert.deepEqual([entry.path, entry.size, entry.permissions], [`${dir}/f`, 5, '-rw-------'])
  fs.rmSync(`${dir}/f`)
  await until('the removal', () => w.has(T.REMOVE, 'f'))
  assert.equal(w.events.at(-1).entry, undefined)
  await w.handle.stop()
})

test('watch: what cannot be watched', async () => {
  const dir = tempDir()
  fs.writeFileSync(`${dir}/f`, '')
  await assert.rejects(watch(`${dir}/none`), (err) => ['NotFoundError', 'FileNotFoundError'].includes(err.name))
  await assert.rejects(watch(`${dir}/f`), (err) => err.name === 'InvalidArgumentError')
})

test('watch: the directory is removed', async () => {
  const dir = tempDir()
  const w = await watch(dir)
  fs.rmdirSync(dir)
  await until('the end', () => w.exits.length > 0)
  assert.deepEqual(w.events.map((e) => [e.type, e.name]), [[T.REMOVE, '.']])
  assert(['NotFoundError', 'FileNotFoundError'].includes(w.exits[0].name), String(w.exits[0]))
})

test('watch: stop and timeout', async () => {
  const dir = tempDir()
  const stopped = await watch(dir)
  await stopped.handle.stop()
  await until('the end', () => stopped.exits.length > 0)
  const timed = await watch(dir, { timeoutMs: 300 })
  await until('the timeout', () => timed.exits.length > 0)
  assert.equal(timed.exits[0].name, 'TimeoutError')
})
