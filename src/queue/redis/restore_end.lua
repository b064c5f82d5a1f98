-- What was taken in becomes the queue: payloads have their keys already, all others get them now.
--
-- ARGV[4]         the name of this restore
-- ARGV[5]         the salt
-- ARGV[6...8]     last position, last batch, last fence
-- ARGV[9...15]    pushed, done, expired, cancelled, purged, ready bytes, held bytes, decimal
-- Returns         'ok' | 'lost', when another restore has begun | 'used', pushed
-- O(b) for b open batches
if not state.format then return { 'gone' } end
local APART = PREFIX .. 'restore:'
if call('HGET', APART .. 'state', 'name') ~= ARGV[4] then return { 'lost' } end
if state.pushed > 0 or call('HLEN', PREFIX .. 'bookmarks') > 0 then
  return refuse('used', decimal(state.pushed))
end
local function move(name)
  if call('EXISTS', APART .. name) == 1 then call('RENAME', APART .. name, PREFIX .. name) end
end
for name in pairs(TYPES) do
  if name ~= 'state' then move(name) end
end
for _, batch in ipairs(call('ZRANGE', APART .. 'batches', 0, -1)) do
  for _, name in ipairs(OF_BATCHES) do move(name .. batch) end
end
state.salt, state.last, state.last_batch, state.fence = ARGV[5], ARGV[6], ARGV[7], ARGV[8]
state.sequence = call('HGET', APART .. 'state', 'sequence')
for i, name in ipairs({ 'pushed', 'done', 'expired', 'cancelled', 'purged', 'ready_bytes', 'held_bytes' }) do
  state[name] = tonumber(ARGV[8 + i])
end
drop('restore:state')
drop('restore:batches')
changed = true
return answer({ 'ok' })
