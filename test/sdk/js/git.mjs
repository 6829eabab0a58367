import assert from 'node:assert/strict'
import { test } from 'node:test'
import { connect, tempDir } from './sandbox.mjs'

const { git, files } = connect()

test('git: a repository by the helpers of the SDK', async () => {
  const dir = tempDir()
  await git.init(`${dir}/repo`)
  await git.configureUser('Test', 'test@example.com', { scope: 'local', path: `${dir}/repo` })
  await files.write(`${dir}/repo/file`, 'contents')
  await git.add(`${dir}/repo`)
  await git.commit(`${dir}/repo`, 'first')
  const status = await git.status(`${dir}/repo`)
  assert.equal(status.isClean, true)
})
