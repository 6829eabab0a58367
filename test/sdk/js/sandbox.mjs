// The daemon as the SDK sees it: a sandbox whose API is at the daemon's port.
import { mkdtempSync, chmodSync, chownSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Sandbox } from 'e2b'

export const url = process.env.ENVD_URL || 'http://localhost:49983'

const { version } = await (await fetch(url + '/health')).json()

// connect makes an SDK sandbox; no platform is asked.
export function connect(opts = {}) {
  return new Sandbox({
    sandboxId: 'local', sandboxUrl: url, envdVersion: version, requestTimeoutMs: 20_000, ...opts,
  })
}

// The user that tests act as beside root, and its number.
export const user = 'daemon'
export const userId = 1

// tempDir is a new directory that belongs to user.
export function tempDir() {
  const dir = mkdtempSync(join(tmpdir(), 'envd-sdk-'))
  chmodSync(dir, 0o755)
  chownSync(dir, userId, userId)
  return dir
}

// until waits for a condition that an event brings about.
export async function until(what, condition) {
  for (const end = Date.now() + 20_000; !condition(); ) {
    if (Date.now() > end) throw new Error(`timed out waiting for ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
}
