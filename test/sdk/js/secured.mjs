// Tests of a daemon with an access token, in one process. The daemon has none
// before.
import assert from 'node:assert/strict'
import * as fs from 'node:fs'
import { test } from 'node:test'
import { connect, tempDir, url, user } from './sandbox.mjs'

const token = 'the token of tests'
const { status } = await fetch(url + '/init', {
  method: 'POST',
  body: JSON.stringify({ accessToken: token, envVars: { FROM_INIT: 'yes' }, defaultUser: user, defaultWorkdir: '/usr/lib' }),
})
assert.equal(status, 204)

const sandbox = connect({ envdAccessToken: token })
const stranger = connect({ envdAccessToken: 'another token' })

test('secured: with the token everything works', async () => {
  const path = `${tempDir()}/f`
  await sandbox.files.write(path, 'contents')
  assert.equal(await sandbox.files.read(path), 'contents')
  assert.equal((await sandbox.files.getInfo(path)).owner, user)
  const out = await sandbox.commands.run('echo $FROM_INIT; id -un; pwd')
  assert.equal(out.stdout, `yes\n${user}\n/usr/lib\n`)
  const events = []
  const handle = await sandbox.files.watchDir(path.slice(0, -2), (e) => events.push(e))
  await handle.stop()
})

test('secured: without it nothing does', async () => {
  for (const refused of [stranger, connect()]) {
    const authentication = (err) => err.name === 'AuthenticationError'
    await assert.rejects(refused.files.read('/etc/hostname'), authentication)
    await assert.rejects(refused.files.write('/tmp/x', 'x'), authentication)
    await assert.rejects(refused.files.list('/'), authentication)
    await assert.rejects(refused.files.watchDir('/', () => {}), authentication)
    await assert.rejects(refused.commands.run('true'), authentication)
    await assert.rejects(refused.commands.list(), authentication)
  }
})

for (const [name, opts] of Object.entries({
  'plain': {}, 'that expires': { useSignatureExpiration: 600 }, 'for a user': { user: 'root', useSignatureExpiration: 600 },
})) {
  test(`secured: signed URLs, ${name}`, async () => {
    const path = `${tempDir()}/with space & ü`
    const form = new FormData()
    form.append('file', new Blob(['signed']), 'ignored')
    const upload = await fetch(await sandbox.uploadUrl(path, opts), { method: 'POST', body: form })
    assert.equal(upload.status, 200)
    assert.equal((await upload.json())[0].path, path)
    assert.equal(fs.readFileSync(path, 'utf8'), 'signed')
    const download = await fetch(await sandbox.downloadUrl(path, opts))
    assert.equal(download.status, 200)
    assert.equal(await download.text(), 'signed')
    assert.equal((await sandbox.files.getInfo(path)).owner, opts.user ?? user)
  })
}

test('secured: signatures that do not fit', async () => {
  const path = `${tempDir()}/f`
  fs.writeFileSync(path, 'x')
  const good = new URL(await sandbox.downloadUrl(path, { useSignatureExpiration: 600 }))
  const bad = (change) => {
    const u = new URL(good)
    change(u.searchParams)
    return u
  }
  const later = String(Number(good.searchParams.get('signature_expiration')) + 1)
  for (const [what, u] of Object.entries({
    'another path': bad((q) => q.set('path', '/etc/hostname')),
    'another time': bad((q) => q.set('signature_expiration', later)),
    'no time': bad((q) => q.delete('signature_expiration')),
    'another user': bad((q) => q.set('username', 'root')),
    'none': bad((q) => q.delete('signature')),
    'past': await sandbox.downloadUrl(path, { useSignatureExpiration: -5 }),
    'a stranger\'s': await stranger.downloadUrl(path),
    'of an upload': await sandbox.uploadUrl(path),
  })) {
    assert.equal((await fetch(u)).status, 401, what)
  }
  assert.equal((await fetch(good)).status, 200)
})
