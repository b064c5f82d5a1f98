-- Makes the queue if it does not exist, and answers its salt.
--
-- ARGV[4]  the format that this client writes
-- ARGV[5]  the salt of a new queue, 16 hexadecimal digits
-- Returns  'ok', salt | 'format', the format found | 'denied', a command that the user may not call
-- O(1)

-- All that the scripts call: one that is refused in the middle of a script would leave its half.
local CALLED = 'EXISTS GET HDEL HEXISTS HGET HGETALL HINCRBY HLEN HMGET HRANDFIELD HSET MSET PERSIST PUBLISH RENAME SET '
  .. 'TYPE UNLINK ZADD ZCARD ZLEXCOUNT ZRANGE ZRANGESTORE ZREM ZREMRANGEBYRANK ZSCORE'
for command in string.gmatch(CALLED, '%u+') do
  local key = PREFIX .. (command == 'PUBLISH' and 'changed' or 'state')
  if not redis.acl_check_cmd(command, key, PREFIX .. 'payload:', '0') then return { 'denied', command } end
end
if not state.format then
  state.format, state.salt, state.last, state.last_batch = ARGV[4], ARGV[5], ZERO, ZERO
elseif state.format ~= ARGV[4] then
  return { 'format', state.format }
end
return answer({ 'ok', state.salt })
