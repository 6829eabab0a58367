import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { execFileSync } from 'node:child_process'
import * as fs from 'node:fs'
import { test } from 'node:test'
import { FileType } from 'e2b'
import { connect, tempDir, user, userId } from './sandbox.mjs'

const { files } = connect()
const notFound = (err) => ['NotFoundError', 'FileNotFoundError'].includes(err.name)

test('files: write and read text', async () => {
  const dir = tempDir()
  const info = await files.write(`${dir}/made/for/it/a.txt`, 'Grüße, 世界')
  assert.deepEqual({ name: info.name, type: info.type, path: info.path },
    { name: 'a.txt', type: 'file', path: `${dir}/made/for/it/a.txt` })
  assert.equal(await files.read(info.path), 'Grüße, 世界')
  assert.equal(await files.read(info.path, { gzip: true }), 'Grüße, 世界')
  await files.write(info.path, 'shorter')
  assert.equal(fs.readFileSync(info.path, 'utf8'), 'shorter')
})

const contents = {
  string: (b) => b.toString('latin1'),
  arraybuffer: (b) => b.buffer.slice(b.byteOffset, b.byteOffset + b.byteLength),
  blob: (b) => new Blob([b]),
  stream: (b) => new Blob([b]).stream(),
}
for (const [kind, make] of Object.entries(contents)) {
  for (const opts of [{}, { gzip: true }, { useOctetStream: true }]) {
    test(`files: write a ${kind} ${JSON.stringify(opts)}`, async () => {
      const data = kind === 'string' ? Buffer.from('x'.repeat(300_000)) : randomBytes(300_000)
      const path = `${tempDir()}/data`
      await files.write(path, make(data), opts)
      assert(fs.readFileSync(path).equals(data))
    })
  }
}

test('files: read in every format', async () => {
  const path = `${tempDir()}/data`
  const data = randomBytes(1_000_000)
  fs.writeFileSync(path, data)
  for (const gzip of [false, true]) {
    assert(Buffer.from(await files.read(path, { format: 'bytes', gzip })).equals(data))
    assert(Buffer.from(await (await files.read(path, { format: 'blob', gzip })).arrayBuffer()).equals(data))
    const parts = []
    for await (const part of await files.read(path, { format: 'stream', gzip })) parts.push(part)
    assert(Buffer.concat(parts).equals(data))
  }
})

test('files: an empty file', async () => {
  const path = `${tempDir()}/empty`
  await files.write(path, '')
  assert.equal(await files.read(path), '')
  assert.equal((await files.read(path, { format: 'bytes' })).length, 0)
  assert.equal((await files.getInfo(path)).size, 0)
})

test('files: a file that reports no size', async () => {
  assert.match(await files.read('/proc/version'), /^Linux version/)
})

test('files: write many', async () => {
  const dir = tempDir()
  const list = Array.from({ length: 5 }, (_, i) => ({ path: `${dir}/sub${i}/f${i}`, data: `contents ${i}` }))
  const infos = await files.write(list)
  assert.deepEqual(infos.map((i) => i.path), list.map((f) => f.path))
  for (const f of list) assert.equal(fs.readFileSync(f.path, 'utf8'), f.data)
  const again = await files.writeFiles(list.map((f) => ({ ...f, data: new Blob([f.data.toUpperCase()]) })))
  assert.equal(again.length, 5)
  assert.equal(fs.readFileSync(list[4].path, 'utf8'), 'CONTENTS 4')
})

test('files: as a user', async () => {
  const dir = tempDir()
  await files.write(`${dir}/sub/mine`, 'x', { user })
  await files.makeDir(`${dir}/dir/below`, { user })
  for (const name of ['sub', 'sub/mine', 'dir', 'dir/below']) {
    const st = fs.lstatSync(`${dir}/${name}`)
    assert.deepEqual([st.uid, st.gid], [userId, userId], name)
  }
  assert.equal((await files.getInfo(`${dir}/sub/mine`)).owner, user)
  await assert.rejects(files.read(`${dir}/sub/mine`, { user: 'nosuchuser' }), (err) => err.name === 'AuthenticationError')
})

test('files: relative paths and the home', async () => {
  const home = (await files.getInfo('~')).path
  await files.write('dir/file', 'at home')
  assert.equal(fs.readFileSync(`${home}/dir/file`, 'utf8'), 'at home')
  assert.equal(await files.read('~/dir/file'), 'at home')
  assert.equal((await files.getInfo('dir')).path, `${home}/dir`)
  await files.remove('dir')
  assert.equal(await files.exists('~/dir'), false)
})

test('files: list', async () => {
  const dir = tempDir()
  fs.mkdirSync(`${dir}/b/c`, { recursive: true })
  fs.writeFileSync(`${dir}/a`, '12345')
  fs.writeFileSync(`${dir}/b/c/deep`, '')
  fs.symlinkSync('a', `${dir}/link`)
  const names = async (opts) => (await files.list(dir, opts)).map((e) => e.path.slice(dir.length + 1))
  assert.deepEqual(await names(), ['a', 'b', 'link'])
  assert.deepEqual(await names({ depth: 2 }), ['a', 'b', 'b/c', 'link'])
  assert.deepEqual(await names({ depth: 9 }), ['a', 'b', 'b/c', 'b/c/deep', 'link'])
  const [a, b, link] = await files.list(dir)
  assert.deepEqual([a.name, a.type, a.size, a.mode, a.permissions, a.owner, a.group], ['a', FileType.FILE, 5, 0o644, '-rw-r--r--', 'root', 'root'])
  assert(Math.abs(a.modifiedTime - Date.now()) < 600_000)
  assert.deepEqual([b.type, b.permissions], [FileType.DIR, 'drwxr-xr-x'])
  assert.deepEqual([link.type, link.symlinkTarget], [FileType.FILE, `${dir}/a`])
  await assert.rejects(files.list(`${dir}/none`), notFound)
  await assert.rejects(files.list(`${dir}/a`), (err) => err.name === 'InvalidArgumentError')
})

test('files: list ten thousand', async () => {
  const dir = tempDir()
  for (let i = 0; i < 10_000; i++) fs.closeSync(fs.openSync(`${dir}/${i}`, 'w'))
  const list = await files.list(dir)
  assert.deepEqual(list.map((e) => e.name), Array.from({ length: 10_000 }, (_, i) => `${i}`).sort())
})

test('files: exists and getInfo', async () => {
  const dir = tempDir()
  fs.writeFileSync(`${dir}/f`, '')
  assert.equal(await files.exists(`${dir}/f`), true)
  assert.equal(await files.exists(dir), true)
  assert.equal(await files.exists(`${dir}/none`), false)
  assert.equal(await files.exists(`${dir}/f/below`), false)
  assert.equal((await files.getInfo(dir)).type, FileType.DIR)
  await assert.rejects(files.getInfo(`${dir}/none`), notFound)
  await assert.rejects(files.read(`${dir}/none`), notFound)
  await assert.rejects(files.read(dir), (err) => err.name === 'InvalidArgumentError')
})

test('files: makeDir', async () => {
  const dir = tempDir()
  assert.equal(await files.makeDir(`${dir}/a/b/c`), true)
  assert.equal(await files.makeDir(`${dir}/a/b/c`), false)
  fs.writeFileSync(`${dir}/f`, '')
  await assert.rejects(files.makeDir(`${dir}/f`), (err) => err.name === 'InvalidArgumentError')
})

test('files: rename', async () => {
  const dir = tempDir()
  fs.writeFileSync(`${dir}/f`, 'x')
  const info = await files.rename(`${dir}/f`, `${dir}/g`)
  assert.deepEqual([info.name, info.path, info.type, info.size], ['g', `${dir}/g`, FileType.FILE, 1])
  assert.equal(await files.exists(`${dir}/f`), false)
  await assert.rejects(files.rename(`${dir}/f`, `${dir}/h`), notFound)
})

test('files: remove', async () => {
  const dir = tempDir()
  fs.mkdirSync(`${dir}/a/b`, { recursive: true })
  await files.remove(`${dir}/a`)
  await files.remove(`${dir}/a`)
  assert.equal(fs.existsSync(`${dir}/a`), false)
})

test('files: metadata', async () => {
  const dir = tempDir()
  const info = await files.write(`${dir}/f`, 'x', { metadata: { Author: 'me', purpose: 'to test' } })
  const want = { author: 'me', purpose: 'to test' }
  assert.deepEqual({ ...info.metadata }, want)
  assert.deepEqual({ ...(await files.getInfo(`${dir}/f`)).metadata }, want)
  assert.deepEqual({ ...(await files.list(dir))[0].metadata }, want)
  await files.write(`${dir}/f`, 'y')
  assert(!(await files.getInfo(`${dir}/f`)).metadata)
})

test('files: names that need care', async () => {
  const dir = tempDir()
  for (const name of ['with space', 'quo"te', 'per%cent', 'plus+and&', 'ünï', 'new\nline', "it's", '#hash?']) {
    await files.write(`${dir}/${name}`, name, { useOctetStream: true })
    assert.equal(fs.readFileSync(`${dir}/${name}`, 'utf8'), name)
    assert.equal(await files.read(`${dir}/${name}`), name)
    assert.equal(await files.exists(`${dir}/${name}`), true)
  }
  assert.equal((await files.list(dir)).length, 8)
})

test('files: a full disk', async () => {
  const dir = tempDir()
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', dir])
  try {
    await assert.rejects(files.write(`${dir}/big`, 'x'.repeat(2_000_000)), (err) => err.name === 'NotEnoughSpaceError')
  } finally {
    execFileSync('umount', [dir])
  }
})
