-- Cancels requests that wait, and marks those in flight.
--
-- ARGV[4...]  ids
-- Returns     'ok', then a character for each: 'n' cancelled now, 'i' if it comes back, '-' neither
-- O(n log N) for n ids
local outcome, ids = {}, {}
for i = 4, #ARGV do ids[#ids + 1] = ARGV[i] end
-- All of them are looked at before the first is changed.
values_of('requests', ids)
for i = 4, #ARGV do
  local id = ARGV[i]
  local rec = call('HGET', PREFIX .. 'requests', id)
  outcome[i - 3] = '-'
  if rec and take_waiting(id, rec) then
    call('HDEL', PREFIX .. 'requests', id)
    forget(id, rec)
    state.cancelled, outcome[i - 3] = state.cancelled + 1, 'n'
  elseif rec and sub(rec, 1, 1) == 'r' and batch_of(id) then
    call('HSET', PREFIX .. 'requests', id, sub(rec, 1, 1) .. 'c' .. sub(rec, 3))
    outcome[i - 3] = 'i'
  end
end
changed = true
return answer({ 'ok', table.concat(outcome) })
