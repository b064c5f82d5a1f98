-- Begins to take in a dump beside the queue, under keys that begin with `restore:`; an earlier restore that did
-- not end can't go on, and what it left is deleted.
--
-- ARGV[4]  the name of this restore
-- Returns  'ok' | 'more', when not all is deleted yet | 'used', pushed
-- O(n log N) for the n of a slice
if not state.format then return { 'gone' } end
local APART = PREFIX .. 'restore:'
call('HSET', APART .. 'state', 'name', ARGV[4])
local left = call('HRANDFIELD', APART .. 'requests', SLICE)
for _, id in ipairs(left) do
  if call('HEXISTS', PREFIX .. 'requests', id) == 0 then drop('payload:' .. id) end
end
if #left > 0 then
  call('HDEL', APART .. 'requests', unpack(left))
  return refuse('more')
end
for _, batch in ipairs(call('ZRANGE', APART .. 'batches', 0, -1)) do
  for _, name in ipairs(OF_BATCHES) do drop('restore:' .. name .. batch) end
end
for name in pairs(TYPES) do
  if name ~= 'state' then drop('restore:' .. name) end
end
drop('restore:batches')
if state.pushed > 0 or call('HLEN', PREFIX .. 'bookmarks') > 0 then
  drop('restore:state')
  return refuse('used', decimal(state.pushed))
end
call('HSET', APART .. 'state', 'sequence', ZERO)
return answer({ 'ok' })
