-- Takes batches from their holders, and ends the wait of deferred ones.
--
-- ARGV[4...]  batches, each once
-- Returns     'ok', then each that was held or deferred and is offered now
-- O(m + n log m) for n of them among m open batches
local offers, released = {}, {}
for _, member in ipairs(call('ZRANGE', PREFIX .. 'offers', 0, -1)) do offers[sub(member, 17)] = sub(member, 1, 16) end
-- All of them are looked at before the first is changed.
for i = 4, #ARGV do
  local batch = ARGV[i]
  if offers[batch] and offers[batch] > NOW then
    local held = held_batch(batch)
    check_batch(batch, held)
    released[#released + 1] = { batch, held }
  end
end
local reply = { 'ok' }
for _, one in ipairs(released) do
  local batch, held = one[1], one[2]
  local is_held = held.fence and held.fence ~= ''
  remove('offers', held.offered .. batch)
  add('offers', ZERO .. batch)
  call('HSET', PREFIX .. 'batch:' .. batch, 'until', ZERO, 'fence', '', 'attempt',
    is_held and math.max(0, held.attempt - 1) or held.attempt)
  reply[#reply + 1] = batch
end
changed = true
return answer(reply)
