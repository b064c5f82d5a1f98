-- Open batches, in order of their ids.
--
-- ARGV[4]  those after this one, or empty; with ARGV[6] '1' this one and no other
-- ARGV[5]  the most of them, decimal
-- ARGV[6]  '1' with checkpoint and context, else '0'
-- Returns  'ok', then 16 values for each: batch, parent or '', fence of its holder or '', offered from, attempt, prior,
--          requests, bytes, formed at, how many are done, to be retried, rejected; '1' with a checkpoint else '0', its bytes,
--          checkpoint or '', context or ''
-- O(m log m) for m open batches, and O(n) for the members of those answered that have members with an outcome; the page
-- ends once there were so many of them
local MOST_LOOKED_AT = 20000
local most, looked_at = tonumber(ARGV[5]), 0

local function outcomes_of(batch, held)
  local counts = { d = 0, r = 0, x = 0 }
  if held.open == held.requests then return counts end
  for from = 0, held.requests - 1, CHUNK do
    local ids = {}
    for i, member in ipairs(call('ZRANGE', PREFIX .. 'members:' .. batch, from, from + CHUNK - 1)) do
      ids[i] = sub(member, 17, 32)
    end
    local outcomes = values_of('outcomes:' .. batch, ids)
    for i, id in ipairs(ids) do
      local outcome = outcomes[i]
      if outcome then
        check_outcome(batch, id, outcome)
        local kind = sub(outcome, 1, 1)
        counts[kind] = counts[kind] + 1
      end
    end
  end
  looked_at = looked_at + held.requests
  return counts
end

local found = {}
for _, member in ipairs(call('ZRANGE', PREFIX .. 'offers', 0, -1)) do
  local batch = sub(member, 17)
  local is_wanted = batch > ARGV[4]
  if ARGV[6] == '1' then is_wanted = batch == ARGV[4] end
  if is_wanted then found[#found + 1] = batch end
end
table.sort(found)

local reply = { 'ok' }
for i, batch in ipairs(found) do
  if i > most or looked_at >= MOST_LOOKED_AT then break end
  local key, held = PREFIX .. 'batch:' .. batch, held_batch(batch)
  check_batch(batch, held)
  local counts = outcomes_of(batch, held)
  local checkpoint, context = '', ''
  if ARGV[6] == '1' then
    local notes = call('HMGET', key, 'checkpoint', 'context')
    checkpoint, context = notes[1] or '', notes[2] or ''
  end
  local values = {
    batch, held.parent, held.fence or '', held.offered, decimal(held.attempt), decimal(held.prior), decimal(held.requests),
    decimal(held.bytes), held.formed_at, decimal(counts.d), decimal(counts.r), decimal(counts.x),
    decimal(call('HEXISTS', key, 'checkpoint')), decimal(call('HSTRLEN', key, 'checkpoint')), checkpoint, context,
  }
  for _, value in ipairs(values) do reply[#reply + 1] = value end
end
return answer(reply)
