-- Gives settled requests that were taken in their places in the order of settling; its KEYS[1] is the
-- `restore:state` of the queue.
--
-- ARGV[4]     the name of this restore
-- ARGV[5...]  ids, in order
-- Returns     'ok' | 'lost', when another restore has begun | 'unfit', an id that is not settled, or twice
-- O(n log N) for n ids
if call('HGET', PREFIX .. 'state', 'name') ~= ARGV[4] then return { 'lost' } end
local ids, seen = {}, {}
for i = 5, #ARGV do ids[#ids + 1] = ARGV[i] end
for i, rec in ipairs(values_of('requests', ids)) do
  local id, kind = ids[i], rec and sub(rec, 1, 1)
  if (kind ~= 'd' and kind ~= 'x') or sub(rec, 59, 74) ~= ZERO or seen[id] then return refuse('unfit', id) end
  local sequence = next_sequence()
  seen[id] = true
  add('settled', sequence .. id)
  later('HSET', 'requests', id, sub(rec, 1, 58) .. sequence .. sub(rec, 75))
end
return answer({ 'ok' })
