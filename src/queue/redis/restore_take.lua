-- Takes in what a dump says; its KEYS[1] is the `restore:state` of the queue.
--
-- ARGV[4]     the name of this restore
-- ARGV[5...]  'h', key, field, value of a hash; 'z', key, member of an ordered set; or 'p', id, payload
-- Returns     'ok' | 'lost', when another restore has begun
-- O(n log N) for n of them
if call('HGET', PREFIX .. 'state', 'name') ~= ARGV[4] then return { 'lost' } end
local i = 5
while i <= #ARGV do
  if ARGV[i] == 'h' then
    later('HSET', ARGV[i + 1], ARGV[i + 2], ARGV[i + 3])
    i = i + 4
  elseif ARGV[i] == 'p' then
    call('SET', sub(PREFIX, 1, -9) .. 'payload:' .. ARGV[i + 1], ARGV[i + 2])
    i = i + 3
  else
    add(ARGV[i + 1], ARGV[i + 2])
    i = i + 3
  end
end
return answer({ 'ok' })
